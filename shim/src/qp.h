/* SPDX-License-Identifier: Apache-2.0 */

/*
 * One queue pair: the host's end of an H2D ring (we produce) and a D2H ring
 * (we consume), as docs/protocol.md, sections 2, 3 and 5, describe them.
 *
 * The producer's fields belong to the holder of tx_lock, the consumer's to the
 * holder of the channel's lock. Everything behind host, dev, h2d and d2h is
 * memory that the DPU may change at any time: a word is read once, checked,
 * and only the copy is used. What we must rely on later (where a payload lies,
 * how long it is, whose it is) is kept in private memory: struct pno_seg.
 */
#ifndef PNO_QP_H
#define PNO_QP_H

#include <stddef.h>
#include <string.h>

#include "../abi.h"
#include "stats.h"
#include "sync.h"

struct pno_sock;
struct pno_chan;

enum { PNO_SEG_HELD, PNO_SEG_DONE, PNO_SEG_PRIVATE };

/* A received payload that waits to be read. */
struct pno_seg {
	struct pno_seg *next, *prev; /* in its socket's stream (socket's lock) */
	struct pno_seg *younger;     /* in its ring (channel's lock) */
	struct pno_sock *sock;
	const uint8_t *data;
	uint64_t off;   /* stream offset of data[0] */
	uint64_t start; /* ring position of its record */
	uint32_t len;
	uint32_t drain; /* number of the drain that brought it */
	uint8_t shard;  /* of a datagram */
	/* HELD: in the ring. DONE: read, the ring may have it back. PRIVATE:
	 * spilled, the payload follows this structure in malloc's memory. */
	_Atomic uint8_t state;
};

struct pno_qp {
	struct pno_host_line *host;
	struct pno_dev_line *dev;
	uint8_t *h2d, *d2h;
	uint32_t h2d_size, d2h_size;
	struct pno_chan *chan;
	uint8_t shard;
	int doorbell; /* eventfd */

	pno_lock_t tx_lock;
	uint32_t rung;     /* DBArm generation last served */
	uint64_t prod;     /* published */
	uint64_t h2d_cons; /* as last read from the DPU */
	uint64_t line;     /* what gets beyond it takes the long way */
	uint64_t pad;      /* that the reservation in hand needs first */
	uint64_t lap;      /* room that has to be left when a lap ends early */
	uint64_t lap_began;

	uint64_t seen;  /* parsed up to here (read without the lock, too) */
	uint64_t dprod; /* producer as last read from the DPU */
	uint64_t cons;  /* given back */
	struct pno_seg *oldest, *newest, *spare;
	uint32_t arm;
	atomic_bool space_want; /* somebody waits for H2D space */
	struct pno_sock *space_list; /* who (tx_lock) */
};

/* Bytes of a record with n payload bytes. */
static inline uint64_t pno_record_space(uint64_t n)
{
	return (PNO_RECORD_HDR + n + PNO_RECORD_ALIGN - 1) & ~(uint64_t)(PNO_RECORD_ALIGN - 1);
}

/* Data leaves this much of the ring to control records. */
#define PNO_CONTROL_ROOM 8192u

/*
 * Where the payload of a record of up to *n bytes may be written; *n shrinks
 * to what fits. NULL: not even min bytes fit. Nothing is visible before
 * pno_qp_commit, and a reservation needs no undoing.
 */
uint8_t *pno_qp_reserve(struct pno_qp *q, uint32_t *n, uint32_t min, bool data);
/* The usual case: a record of n bytes fits as it is, by what is known. */
static inline bool pno_qp_room_here(const struct pno_qp *q, uint32_t n, uint32_t keep)
{
	uint64_t need = pno_record_space(n);

	return need <= q->line - q->prod && need + keep <= q->h2d_size - (q->prod - q->h2d_cons);
}

/* For data; NULL: ask pno_qp_reserve. */
static inline uint8_t *pno_qp_reserve_here(struct pno_qp *q, uint32_t n)
{
	if (!pno_qp_room_here(q, n, PNO_CONTROL_ROOM))
		return NULL;
	return q->h2d + (q->prod & (q->h2d_size - 1)) + PNO_RECORD_HDR;
}
void pno_qp_commit(struct pno_qp *q, struct pno_record r);
/* Of what pno_qp_reserve_here has reserved. */
static inline void pno_qp_commit_here(struct pno_qp *q, struct pno_record r)
{
	memcpy(q->h2d + (q->prod & (q->h2d_size - 1)), &r, sizeof r);
	q->prod += pno_record_space(r.len);
	pno_count(records_tx);
}
/* Makes commits visible and rings the doorbell if the DPU asks for it. */
void pno_qp_publish(struct pno_qp *q);
/* True if records with n bytes of payload in all find room now, each as long as
 * it may be; and if they would in an empty ring. */
bool pno_qp_fits(struct pno_qp *q, uint64_t n);
bool pno_qp_could_hold(const struct pno_qp *q, uint64_t n);
/* Re-reads the DPU's consumer; true if at least half of the ring is free. */
bool pno_qp_has_room(struct pno_qp *q);

/* 1: a record, with its payload in the ring; 0: none; -1: violation. */
int pno_qp_next(struct pno_qp *q, struct pno_record *r, const uint8_t **payload, uint64_t *start);
/* Keeps a record's payload in the ring; NULL if out of memory. */
struct pno_seg *pno_qp_hold(struct pno_qp *q, uint64_t start);
/* Gives back what was read, in the ring's order. */
void pno_qp_give_back(struct pno_qp *q);
/* Copies a segment's payload to private memory (not its links). */
struct pno_seg *pno_seg_private(const struct pno_seg *g);

static inline bool pno_qp_moved(const struct pno_qp *q)
{
	return pno_load64(&q->dev->d2h_prod) != __atomic_load_n(&q->seen, __ATOMIC_RELAXED);
}

/* Nothing has come, and little is left to give back: to drain it changes nothing. */
static inline bool pno_qp_calm(const struct pno_qp *q)
{
	uint64_t seen = __atomic_load_n(&q->seen, __ATOMIC_RELAXED);

	return pno_load64(&q->dev->d2h_prod) == seen && seen - pno_load64(&q->host->d2h_cons) < q->d2h_size / 4;
}

/* Section 5, step 3; and its undoing. */
void pno_qp_arm(struct pno_qp *q);
void pno_qp_disarm(struct pno_qp *q);

#endif
