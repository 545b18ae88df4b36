/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A socket's received stream: segments by stream offset.
 *
 * Offsets come as the low 32 bits of 64-bit positions. Records of one home
 * arrive in order; after a change of home (Claim) those of the new channel may
 * be seen before the rest of the former one's, and after a fork data that both
 * processes hold may come again. So a segment is put in its place, overlaps
 * are skipped when read, and rx_next is the end of what is contiguous.
 */
#include <stdlib.h>
#include <string.h>

#include "sock.h"
#include "memory.h"
#include "stats.h"

static void unlink_seg(struct pno_sock *s, struct pno_seg *g)
{
	if (g->prev)
		g->prev->next = g->next;
	else
		s->rx_head = g->next;
	if (g->next)
		g->next->prev = g->prev;
	else
		s->rx_tail = g->prev;
}

static void link_after(struct pno_sock *s, struct pno_seg *at, struct pno_seg *g)
{
	g->prev = at;
	g->next = at ? at->next : s->rx_head;
	if (g->next)
		g->next->prev = g;
	else
		s->rx_tail = g;
	if (at)
		at->next = g;
	else
		s->rx_head = g;
}

static void release(struct pno_seg *g)
{
	if (atomic_load_explicit(&g->state, memory_order_relaxed) == PNO_SEG_PRIVATE)
		pno_free(g);
	else
		atomic_store_explicit(&g->state, PNO_SEG_DONE, memory_order_release);
}

void pno_rx_append(struct pno_sock *s, struct pno_seg *g)
{
	link_after(s, s->rx_tail, g);
}

void pno_rx_drop(struct pno_sock *s, struct pno_seg *g)
{
	unlink_seg(s, g);
	release(g);
}

void pno_rx_drop_head(struct pno_sock *s)
{
	struct pno_seg *g = s->rx_head;

	s->rx_head = g->next;
	if (g->next)
		g->next->prev = NULL;
	else
		s->rx_tail = NULL;
	release(g);
}

void pno_rx_drop_all(struct pno_sock *s)
{
	while (s->rx_head)
		pno_rx_drop_head(s);
}

/* 0: taken or rightly ignored; -1: beyond the window; -2: out of memory. */
int pno_rx_insert(struct pno_sock *s, struct pno_qp *q, uint32_t off32, const uint8_t *data,
		  uint32_t len, uint64_t start, uint32_t drain)
{
	uint64_t off = s->rx_next + (int32_t)(off32 - (uint32_t)s->rx_next);
	struct pno_seg *g, *at;

	if (!len || (int64_t)(off + len - s->rx_read) <= 0)
		return 0;
	if (off + len - s->rx_told > (uint64_t)s->ses->rx_window + PNO_MAX_PAYLOAD)
		return -1;
	g = pno_qp_hold(q, start);
	if (unlikely(!g))
		return -2;
	g->sock = s;
	g->data = data;
	g->off = off;
	g->len = len;
	g->drain = drain;
	at = s->rx_tail;
	if (likely(off == s->rx_next && (!at || at->off <= off))) { /* in order, as ever */
		g->prev = at;
		g->next = NULL;
		*(at ? &at->next : &s->rx_head) = g;
		s->rx_tail = g;
		s->rx_next = off + len;
		return 0;
	}
	for (; at && at->off > off; at = at->prev)
		;
	link_after(s, at, g);
	for (; g && (int64_t)(g->off - s->rx_next) <= 0; g = g->next)
		if ((int64_t)(g->off + g->len - s->rx_next) > 0)
			s->rx_next = g->off + g->len;
	return 0;
}

void pno_rx_spill(struct pno_seg *g)
{
	struct pno_sock *s = g->sock;
	struct pno_seg *p;

	pno_lock(&s->lock);
	if (atomic_load_explicit(&g->state, memory_order_relaxed) == PNO_SEG_HELD) {
		p = pno_seg_private(g);
		if (p) {
			struct pno_seg *at = g->prev;

			unlink_seg(s, g);
			link_after(s, at, p);
			atomic_store_explicit(&g->state, PNO_SEG_DONE, memory_order_release);
			pno_count_add(rx_spilled_bytes, g->len);
		}
	}
	pno_unlock(&s->lock);
}

/* With the socket's lock held. */
void pno_rx_spill_all(struct pno_sock *s)
{
	struct pno_seg *g, *next;

	for (g = s->rx_head; g; g = next) {
		struct pno_seg *p;

		next = g->next;
		if (atomic_load_explicit(&g->state, memory_order_relaxed) != PNO_SEG_HELD)
			continue;
		p = pno_seg_private(g);
		if (p) {
			struct pno_seg *at = g->prev;

			unlink_seg(s, g);
			link_after(s, at, p);
			atomic_store_explicit(&g->state, PNO_SEG_DONE, memory_order_release);
		}
	}
}
