/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A session: this process's share of the DPU. Session memory, channels, the
 * tables from handle to socket, and the requests that wait for a Reply.
 *
 * There is one session at a time, made at the first need (pno_session_get) and
 * never freed: threads may hold pointers into it. The child of a fork, and a
 * process whose DPU was lost, make another.
 */
#ifndef PNO_SESSION_H
#define PNO_SESSION_H

#include <pthread.h>
#include <stddef.h>

#include "../attach.h"
#include "qp.h"

struct pno_chan {
	pno_lock_t lock; /* consumer ends, arming, sleepers */
	uint16_t index;
	int irq; /* eventfd that the DPU (or a thread of ours) raises */
	unsigned sleepers;
	uint32_t drains;
	uint64_t drained; /* when it was last, in ticks; read without the lock */
	struct pno_session *ses;
	uint8_t *base; /* its part of the session's memory */
	struct pno_qp qp[]; /* one a shard */
};

/* Handle slots: 22 bits in pages of 10. */
#define PNO_SLOT_PAGE  1024u
#define PNO_SLOT_PAGES 4096u

/*
 * A slot is one word, so that nobody sees half of a change: the socket, and
 * above the bits that a program's addresses have, the upper half of its handle.
 * A free slot has that of the last one, as if the other side had chosen it, and
 * the number of the next free slot.
 */
typedef uint64_t pno_slot_t;
#define PNO_SLOT_TAG  48
#define PNO_SLOT_FREE (1ull << 63)

struct pno_slots {
	pno_slot_t *page[PNO_SLOT_PAGES];
};

static inline pno_slot_t pno_slot_tag(uint32_t handle)
{
	return (pno_slot_t)(handle >> 16) << PNO_SLOT_TAG;
}

/* A request that waits for its Reply. */
struct pno_call {
	struct pno_call *next;
	struct pno_chan *chan; /* where it was sent, and the Reply comes */
	uint32_t tag;
	uint32_t err; /* errno, or PNO_ERRNO_REDIRECT | shard */
	uint32_t len;
	atomic_bool done;
	uint8_t payload[sizeof(struct pno_opt_val)];
};

struct pno_session {
	struct pno_session *former; /* the one before, lost: threads may still look at it */
	struct pno_session_header *header; /* only status is read from it */
	uint64_t id, channel_stride;
	uint64_t features;
	uint32_t h2d_size, d2h_size, rx_window, tx_window, spin_nanos;
	uint32_t channels, shards;
	int memory;
	int doorbell[PNO_MAX_SHARDS];
	atomic_bool lost;

	struct pno_chan *chan[PNO_MAX_CHANNELS];
	atomic_uint nchan;
	uint64_t idle; /* channels whose poller is gone */

	pno_lock_t slot_lock; /* a leaf */
	struct pno_slots own;  /* handles that we chose, same on all shards */
	struct pno_slots *dpu; /* handles that the DPU chose, one a shard */
	uint32_t own_used, free_first, free_last;

	pno_lock_t call_lock; /* a leaf */
	struct pno_call *calls;
	atomic_uint tag;

	uint8_t default_action;
	uint32_t nrules;
	struct pno_rule rules[PNO_MAX_RULES];
};

/* The session, attached if need be. NULL, with the reason counted: none. */
struct pno_session *pno_session_get(void);
/* The session if there is one and it lives. */
struct pno_session *pno_session_now(void);
/* What to do with sockets while pno_session_get gives NULL: 0, leave them to
 * the kernel, or the errno for bind and connect. */
int pno_session_refusal(void);
/* Ends the session: every socket of it is reset. Called with no lock held. */
void pno_session_lose(struct pno_session *ses, const char *why);
/* What that means for one socket, which is locked. Twice is as good as once. */
void pno_session_lose_sock(struct pno_session *ses, struct pno_sock *s);
/* True, and the session is ended, if the DPU is gone. */
bool pno_session_check(struct pno_session *ses);

/* A channel for a new poller: opened, or shared when all are in use. */
struct pno_chan *pno_chan_open(struct pno_session *ses);
/* Its poller is gone; another may have it. */
void pno_chan_close(struct pno_chan *c);
/* Wakes whoever sleeps on the channel. */
void pno_chan_kick(struct pno_chan *c);

/* A handle of ours, for s; 0: none free. */
uint32_t pno_handle_new(struct pno_session *ses, struct pno_sock *s);
/* Enters a handle that the DPU chose. */
bool pno_handle_enter(struct pno_session *ses, unsigned shard, uint32_t handle, struct pno_sock *s);
void pno_handle_drop(struct pno_session *ses, unsigned shard, uint32_t handle);

static inline struct pno_sock *pno_handle_sock(struct pno_session *ses, unsigned shard, uint32_t handle)
{
	struct pno_slots *t = handle & PNO_HANDLE_HOST ? &ses->own : &ses->dpu[shard];
	uint32_t n = handle & PNO_HANDLE_SLOT_MASK;
	pno_slot_t *page = __atomic_load_n(&t->page[n / PNO_SLOT_PAGE], __ATOMIC_ACQUIRE), slot;

	if (unlikely(!page))
		return NULL;
	slot = __atomic_load_n(&page[n % PNO_SLOT_PAGE], __ATOMIC_ACQUIRE) ^ pno_slot_tag(handle);
	return likely(!(slot >> PNO_SLOT_TAG)) ? (struct pno_sock *)slot : NULL;
}

/* Starts a request on a channel: registers c under a new tag. No handler runs
 * from here to the end of pno_call_wait, for c is on the stack. */
void pno_call_begin(struct pno_chan *chan, struct pno_call *c);
/* Waits for its Reply; 0 or an errno. Not interruptible. */
int pno_call_wait(struct pno_session *ses, struct pno_call *c);
/* A Reply came. */
void pno_call_reply(struct pno_session *ses, const struct pno_record *r, const uint8_t *payload);

/* Fork: what the child will present, and the child's own start. */
void pno_session_lock_all(struct pno_session *ses);
void pno_session_unlock_all(struct pno_session *ses);
void pno_session_child(const uint8_t *token);

#endif
