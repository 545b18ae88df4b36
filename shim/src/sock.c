/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Socket objects: where they come from, what poll would say of them, and how
 * events reach those who wait.
 *
 * An event goes two ways: to each epoll instance that has the socket (its
 * ready list), and, if threads are blocked on the socket itself, to the
 * interrupt of its home channel, on which they sleep.
 */
#include "sock.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "epoll.h"
#include "listener.h"
#include "log.h"
#include "memory.h"
#include "stats.h"
#include "udp.h"

/* As many as a block takes. */
#define SLAB ((PNO_LARGEST - sizeof(struct slab *)) / sizeof(struct pno_sock))

struct slab {
	struct slab *next;
	struct pno_sock sock[SLAB];
};
_Static_assert(sizeof(struct pno_sock) <= 312, "an idle connection is to take less than 900 bytes, the program's half included");

static const struct pno_more nothing;
static struct slab *slabs;
static struct pno_sock *spare;
static pno_lock_t alloc_lock; /* a leaf */

struct pno_sock *pno_sock_new(int domain)
{
	struct pno_sock *s;
	uint32_t generation;

	pno_lock(&alloc_lock);
	if (!spare) {
		struct slab *b = pno_calloc(1, sizeof *b);

		if (!b) {
			pno_unlock(&alloc_lock);
			return NULL;
		}
		b->next = slabs;
		slabs = b;
		for (size_t i = 0; i < SLAB; i++) {
			b->sock[i].more = (struct pno_more *)&nothing;
			b->sock[i].next_parked = spare;
			spare = &b->sock[i];
		}
	}
	s = spare;
	spare = s->next_parked;
	pno_unlock(&alloc_lock);

	/* The lock word stays: a thread with an old pointer may be at it. */
	pno_lock(&s->lock);
	generation = s->generation;
	memset((char *)s + offsetof(struct pno_sock, mask), 0,
	       sizeof *s - offsetof(struct pno_sock, mask));
	memset(s, 0, offsetof(struct pno_sock, lock));
	s->more = (struct pno_more *)&nothing;
	s->generation = generation + 1;
	s->kind = PNO_KIND_SOCK;
	s->domain = domain;
	s->state = PNO_FRESH;
	pno_unlock(&s->lock);
	return s;
}

struct pno_more *pno_sock_more(struct pno_sock *s)
{
	struct pno_more *m;

	if (s->more != &nothing)
		return s->more;
	m = pno_calloc(1, sizeof *m);
	if (m)
		s->more = m;
	return m;
}

static void drop_more(struct pno_sock *s)
{
	if (likely(s->more == &nothing))
		return;
	pno_sock_forget_opts(s);
	pno_free(s->more);
	s->more = (struct pno_more *)&nothing; /* never written to */
}

static struct pno_addr widen(const struct pno_end *e, const struct pno_addr *wide)
{
	struct pno_addr a = { .family = e->family, .port = e->port };

	if (unlikely(e->family == 6))
		return *wide;
	memcpy(a.ip, e->ip, sizeof e->ip);
	return a;
}

struct pno_addr pno_sock_local(const struct pno_sock *s)
{
	return widen(&s->local, &s->more->local);
}

struct pno_addr pno_sock_peer(const struct pno_sock *s)
{
	return widen(&s->peer, &s->more->peer);
}

/* False: what is wide is to be kept, too. */
static bool narrow(struct pno_end *e, const struct pno_addr *a)
{
	*e = (struct pno_end){ .family = a->family, .port = a->port };
	memcpy(e->ip, a->ip, sizeof e->ip);
	return a->family != 6;
}

void pno_sock_set_local(struct pno_sock *s, const struct pno_addr *a)
{
	if (likely(narrow(&s->local, a)))
		return;
	if (pno_sock_more(s))
		s->more->local = *a;
	else
		s->local.family = 0;
}

void pno_sock_set_peer(struct pno_sock *s, const struct pno_addr *a)
{
	if (likely(narrow(&s->peer, a)))
		return;
	if (pno_sock_more(s))
		s->more->peer = *a;
	else
		s->peer.family = 0;
}

void pno_sock_want_space(struct pno_sock *s, struct pno_qp *q)
{
	if (s->ring_full)
		return;
	s->ring_full = true;
	s->next_space = q->space_list;
	q->space_list = s;
	atomic_store_explicit(&q->space_want, true, memory_order_relaxed);
	pno_count(tx_ring_full);
}

/* A datagram socket may wait for any shard's ring. */
void pno_sock_leave_space(struct pno_sock *s)
{
	struct pno_chan *c = s->qp->chan;
	struct pno_sock **p;

	for (unsigned i = 0; i < c->ses->shards; i++) {
		pno_lock(&c->qp[i].tx_lock);
		for (p = &c->qp[i].space_list; *p && *p != s; p = &(*p)->next_space)
			;
		if (*p)
			*p = s->next_space;
		pno_unlock(&c->qp[i].tx_lock);
	}
	s->ring_full = false;
}

void pno_sock_free(struct pno_sock *s)
{
	pno_lock(&s->lock);
	pno_rx_drop_all(s);
	if (s->ring_full)
		pno_sock_leave_space(s);
	if (s->udp)
		pno_udp_free(s);
	drop_more(s);
	pno_free(s->listener);
	s->listener = NULL;
	s->state = PNO_FREE;
	s->generation++; /* who waits on it sees that it is gone */
	if (s->waiters)
		pno_chan_kick(s->qp->chan);
	s->qp = NULL;
	pno_unlock(&s->lock);

	pno_lock(&alloc_lock);
	s->next_parked = spare;
	spare = s;
	pno_unlock(&alloc_lock);
}

void pno_sock_each_slot(void (*fn)(struct pno_sock *, void *), void *arg)
{
	struct slab *b;

	pno_lock(&alloc_lock);
	b = slabs;
	pno_unlock(&alloc_lock);
	for (; b; b = b->next)
		for (size_t i = 0; i < SLAB; i++)
			fn(&b->sock[i], arg);
}

struct each {
	void (*fn)(struct pno_sock *, void *);
	void *arg;
};

static void if_used(struct pno_sock *s, void *arg)
{
	const struct each *e = arg;

	if (s->state != PNO_FREE)
		e->fn(s, e->arg);
}

void pno_sock_each(void (*fn)(struct pno_sock *, void *), void *arg)
{
	struct each e = { fn, arg };

	pno_sock_each_slot(if_used, &e);
}

static uint32_t open_mask(const struct pno_sock *s)
{
	const uint32_t in = EPOLLIN | EPOLLRDNORM, out = EPOLLOUT | EPOLLWRNORM;
	bool end = s->shut_rd || pno_sock_ended(s);
	uint32_t m = 0;

	if (end)
		m |= in | EPOLLRDHUP;
	else if (pno_sock_unread(s) >= pno_sock_lowat(s))
		m |= in;
	/* Like the kernel: a good part of the buffer must be free. */
	if (s->shut_wr || (!s->ring_full && pno_sock_window(s) >= pno_sock_tx_window(s) / 4))
		m |= out;
	if (end && s->shut_wr)
		m |= EPOLLHUP;
	return m;
}

/* What its home knows better. Who sends or receives brings it home, and then
 * has a window of its own. */
static uint32_t away_mask(const struct pno_sock *s)
{
	bool end = s->shut_rd || (s->standing & PNO_STANDING_ENDED);
	uint32_t m = EPOLLOUT | EPOLLWRNORM;

	if (end || (s->standing & PNO_STANDING_READABLE))
		m |= EPOLLIN | EPOLLRDNORM;
	if (end)
		m |= EPOLLRDHUP;
	if (end && s->shut_wr)
		m |= EPOLLHUP;
	return m;
}

void pno_sock_refresh(struct pno_sock *s)
{
	uint32_t m = 0;

	switch (s->state) {
	case PNO_OPEN:
		if (likely(!s->away))
			m = open_mask(s);
		else if (s->ses)
			m = away_mask(s);
		break;
	case PNO_DGRAM:
		m = pno_udp_mask(s);
		break;
	case PNO_LISTENING:
		if (s->listener->stopped)
			m = EPOLLOUT | EPOLLWRNORM | EPOLLHUP;
		else if (s->listener->parked)
			m = EPOLLIN | EPOLLRDNORM;
		break;
	case PNO_DEAD:
		if (s->unconnected)
			m = EPOLLOUT | EPOLLWRNORM | EPOLLHUP;
		else
			m = EPOLLIN | EPOLLRDNORM | EPOLLOUT | EPOLLWRNORM | EPOLLHUP | EPOLLRDHUP;
		break;
	case PNO_FRESH:
	case PNO_BOUND:
		m = EPOLLOUT | EPOLLWRNORM | EPOLLHUP;
		break;
	}
	if (s->err)
		m |= EPOLLERR;
	atomic_store_explicit(&s->mask, m, memory_order_relaxed);
}

void pno_sock_tell(struct pno_sock *s, uint32_t bits)
{
	for (struct pno_item *it = s->items; it; it = it->in_sock)
		if (!it->in_kernel && it->events &&
		    (bits & (it->events | EPOLLERR | EPOLLHUP)))
			pno_epoll_push(it);
	if (pno_sock_awaited(s) && s->qp)
		pno_chan_kick(s->qp->chan);
}

void pno_sock_event(struct pno_sock *s, uint32_t bits)
{
	pno_sock_refresh(s);
	pno_sock_tell(s, bits);
}

bool pno_sock_look(struct pno_sock *s)
{
	struct pno_chan *c = s->qp->chan;
	uint32_t generation = s->generation;

	pno_unlock(&s->lock);
	pno_chan_drain(c);
	pno_lock(&s->lock);
	return s->generation == generation;
}

void pno_sock_die(struct pno_sock *s, int err)
{
	if (s->state == PNO_DEAD || s->state == PNO_FREE)
		return;
	if (s->state == PNO_DGRAM) {
		pno_udp_lose(s);
		return;
	}
	s->err = err;
	s->state = PNO_DEAD;
	pno_count(resets);
	pno_sock_event(s, EPOLLIN | EPOLLRDNORM | EPOLLOUT | EPOLLWRNORM | EPOLLERR | EPOLLHUP | EPOLLRDHUP);
}

void pno_sock_child_locks(void)
{
	atomic_store(&alloc_lock.held, 0);
}
