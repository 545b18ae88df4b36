/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The two rings of a queue pair.
 *
 * H2D. Records are built in place, behind the published position, and become
 * visible by one release store of h2d_prod. A record never wraps: what is left
 * of the ring is padded, or, when it is large enough to be worth it, takes the
 * first part of the payload. Data may use all but PNO_CONTROL_ROOM bytes, so that
 * a close or an acknowledgement is not stuck behind bulk.
 *
 * Laps. Once in PNO_LAP_STEP bytes the producer looks how far the DPU is, and if
 * that leaves enough room, it pads the ring to its end and begins again: light
 * use stays in the first PNO_EARLY_LAP bytes or so (offload/lap.go).
 *
 * Doorbell. The DPU says it is about to sleep (db_arm odd), then looks at
 * h2d_prod once more. We publish, then look at db_arm. With a full fence on
 * both sides between store and load at least one of the two sees the other.
 * A generation is served once: rung remembers it.
 *
 * D2H. Payloads stay in the ring until the program reads them, in any order of
 * sockets, but ring space goes back in order. So each held payload has a
 * segment in a first-in first-out list; reading marks it DONE, and the next
 * drain removes what is DONE from the old end and moves d2h_cons.
 */
#include "qp.h"

#include <stdlib.h>
#include <string.h>

#include "memory.h"
#include "quiet.h"
#include "real.h"
#include "stats.h"

#define SPLIT_MIN    2048u
#define SEG_BATCH    64

static void write_header(uint8_t *at, const struct pno_record *r)
{
	memcpy(at, r, sizeof *r);
}

static void read_cons(struct pno_qp *q)
{
	uint64_t c = pno_load64(&q->dev->h2d_cons);

	/* A consumer that moves back or passes the producer gains nothing: we
	 * keep the last credible value and the ring fills up. */
	if (c >= q->h2d_cons && c <= q->prod && c % PNO_RECORD_ALIGN == 0)
		q->h2d_cons = c;
}

/* Places a record: shrinks *n (not below min) to what fits, sets the padding. */
static bool place(struct pno_qp *q, uint32_t *n, uint32_t min, bool data)
{
	uint64_t avail = q->h2d_size - (q->prod - q->h2d_cons);
	uint64_t tail = q->h2d_size - (q->prod & (q->h2d_size - 1));
	uint64_t keep = data ? PNO_CONTROL_ROOM : 0;
	uint64_t here, there;

	if (avail < keep + PNO_RECORD_HDR)
		return false;
	avail -= keep;
	here = avail < tail ? avail : tail;
	q->pad = 0;
	if (pno_record_space(*n) <= here)
		return true;
	if (data && here >= SPLIT_MIN) {
		*n = here - PNO_RECORD_HDR; /* both are multiples of 16 */
		return true;
	}
	if (avail < tail + pno_record_space(min))
		return false;
	q->pad = tail;
	there = avail - tail - PNO_RECORD_HDR;
	if (there < *n)
		*n = there;
	return true;
}

static bool lap_over(struct pno_qp *q)
{
	read_cons(q);
	return (q->prod & (q->h2d_size - 1)) >= q->lap + (q->prod - q->h2d_cons);
}

/* There is not enough room. If that is because the lap before ended early, the
 * next goes further. */
static void ran_short(struct pno_qp *q)
{
	if (q->h2d_cons < q->lap_began && q->lap < q->h2d_size)
		q->lap *= 2;
	q->lap_began = 0;
}

/* At the line, or at the end of what is known to be free. */
static bool place_anew(struct pno_qp *q, uint32_t *n, uint32_t min, bool data)
{
	uint32_t want = *n;
	bool fits;

	if (pno_record_space(want) > q->line - q->prod && lap_over(q)) {
		q->pad = q->h2d_size - (q->prod & (q->h2d_size - 1));
		return true;
	}
	if (place(q, n, min, data) && *n == want)
		return true;
	read_cons(q);
	*n = want;
	fits = place(q, n, min, data);
	if (!fits || *n < want)
		ran_short(q);
	return fits;
}

uint8_t *pno_qp_reserve(struct pno_qp *q, uint32_t *n, uint32_t min, bool data)
{
	uint32_t want = *n < PNO_MAX_PAYLOAD ? *n : PNO_MAX_PAYLOAD;

	*n = want;
	q->pad = 0;
	if (unlikely(!pno_qp_room_here(q, want, data ? PNO_CONTROL_ROOM : 0)) &&
	    !place_anew(q, n, min < want ? min : want, data))
		return NULL;
	return q->h2d + ((q->prod + q->pad) & (q->h2d_size - 1)) + PNO_RECORD_HDR;
}

void pno_qp_commit(struct pno_qp *q, struct pno_record r)
{
	static const struct pno_record filler = { .op = PNO_OP_PAD };

	if (q->pad) {
		write_header(q->h2d + (q->prod & (q->h2d_size - 1)), &filler);
		pno_store64(&q->host->h2d_pad, q->prod);
		q->prod += q->pad;
		q->pad = 0;
		q->lap_began = q->prod;
	}
	write_header(q->h2d + (q->prod & (q->h2d_size - 1)), &r);
	q->prod += pno_record_space(r.len);
	q->line = q->prod | (PNO_LAP_STEP - 1);
	pno_count(records_tx);
}

void pno_qp_publish(struct pno_qp *q)
{
	uint32_t db;

	pno_store64(&q->host->h2d_prod, q->prod);
	pno_full_fence();
	db = __atomic_load_n(&q->dev->db_arm, __ATOMIC_RELAXED);
	if ((db & 1) && db != q->rung) {
		uint64_t one = 1;

		q->rung = db;
		if (quiet_write(q->doorbell, &one, sizeof one) == sizeof one)
			pno_count(doorbells);
	}
}

/* The records, the padding that one of them may need, and the control room. */
static uint64_t room_for(uint64_t n)
{
	uint64_t records = n / PNO_MAX_PAYLOAD + 1;

	return n + records * (PNO_RECORD_HDR + PNO_RECORD_ALIGN) +
	       (n < PNO_MAX_PAYLOAD ? pno_record_space(n) : pno_record_space(PNO_MAX_PAYLOAD)) + PNO_CONTROL_ROOM;
}

bool pno_qp_fits(struct pno_qp *q, uint64_t n)
{
	if (likely(q->h2d_size - (q->prod - q->h2d_cons) >= room_for(n)))
		return true;
	read_cons(q);
	if (q->h2d_size - (q->prod - q->h2d_cons) >= room_for(n))
		return true;
	ran_short(q);
	return false;
}

bool pno_qp_could_hold(const struct pno_qp *q, uint64_t n)
{
	return q->h2d_size >= room_for(n);
}

bool pno_qp_has_room(struct pno_qp *q)
{
	bool room;

	pno_lock(&q->tx_lock);
	read_cons(q);
	room = q->prod - q->h2d_cons <= q->h2d_size / 2;
	pno_unlock(&q->tx_lock);
	return room;
}

int pno_qp_next(struct pno_qp *q, struct pno_record *r, const uint8_t **payload, uint64_t *start)
{
	for (;;) {
		uint64_t pos = q->seen & (q->d2h_size - 1);
		uint64_t space;

		if (q->seen == q->dprod) {
			uint64_t p = pno_load64(&q->dev->d2h_prod);

			if (p == q->dprod)
				return 0;
			if (p < q->dprod || p - q->cons > q->d2h_size || p % PNO_RECORD_ALIGN)
				return -1;
			q->dprod = p;
		}
		/* One copy; from here on only the copy counts. */
		memcpy(r, q->d2h + pos, sizeof *r);
		__asm__ volatile("" : "+m"(*r));
		space = r->op == PNO_OP_PAD ? q->d2h_size - pos : pno_record_space(r->len);
		if ((r->op != PNO_OP_PAD && r->len > PNO_MAX_PAYLOAD) ||
		    space > q->d2h_size - pos || space > q->dprod - q->seen)
			return -1;
		*start = q->seen;
		__atomic_store_n(&q->seen, q->seen + space, __ATOMIC_RELAXED);
		if (r->op == PNO_OP_PAD)
			continue;
		*payload = q->d2h + pos + PNO_RECORD_HDR;
		__builtin_prefetch(q->d2h + (q->seen & (q->d2h_size - 1)));
		return 1;
	}
}

struct pno_seg *pno_qp_hold(struct pno_qp *q, uint64_t start)
{
	struct pno_seg *g = q->spare;

	if (!g) {
		g = pno_calloc(SEG_BATCH, sizeof *g);
		if (!g)
			return NULL;
		for (int i = 0; i < SEG_BATCH - 1; i++)
			g[i].younger = &g[i + 1];
	}
	q->spare = g->younger;
	g->younger = NULL;
	g->start = start;
	atomic_store_explicit(&g->state, PNO_SEG_HELD, memory_order_relaxed);
	if (q->newest)
		q->newest->younger = g;
	else
		q->oldest = g;
	q->newest = g;
	return g;
}

void pno_qp_give_back(struct pno_qp *q)
{
	struct pno_seg *g;
	uint64_t cons;

	while ((g = q->oldest) && atomic_load_explicit(&g->state, memory_order_acquire) == PNO_SEG_DONE) {
		q->oldest = g->younger;
		if (!q->oldest)
			q->newest = NULL;
		g->younger = q->spare;
		q->spare = g;
	}
	cons = q->oldest ? q->oldest->start : q->seen;
	if (cons != q->cons) {
		q->cons = cons;
		pno_store64(&q->host->d2h_cons, cons);
	}
}

struct pno_seg *pno_seg_private(const struct pno_seg *g)
{
	struct pno_seg *p = pno_alloc(sizeof *p + g->len);

	if (!p)
		return NULL;
	memset(p, 0, sizeof *p);
	memcpy(p + 1, g->data, g->len);
	p->data = (const uint8_t *)(p + 1);
	p->sock = g->sock;
	p->off = g->off;
	p->len = g->len;
	p->shard = g->shard;
	atomic_store_explicit(&p->state, PNO_SEG_PRIVATE, memory_order_relaxed);
	return p;
}

void pno_qp_arm(struct pno_qp *q)
{
	q->arm += 1 + (q->arm & 1);
	pno_store64(&q->host->d2h_seen, q->seen);
	pno_store32(&q->host->space_want, atomic_load_explicit(&q->space_want, memory_order_relaxed));
	pno_store32(&q->host->arm, q->arm);
}

void pno_qp_disarm(struct pno_qp *q)
{
	if (q->arm & 1)
		pno_store32(&q->host->arm, ++q->arm);
}
