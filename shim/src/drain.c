/* SPDX-License-Identifier: Apache-2.0 */

/*
 * From D2H rings to sockets.
 *
 * Any thread may drain any channel, one at a time (channel's lock). Draining
 * looks at headers only; payloads stay where they are. Records of sockets that
 * have been closed meanwhile are dropped. A record that cannot be true ends
 * the session: nothing after it in the ring can be trusted.
 *
 * Slow readers: before what is held fills half of a ring, the oldest payloads
 * have to make room. Those that this very drain brought have not had their
 * chance to be read, so the drain stops instead and leaves the rest in the
 * ring; payloads that a former drain brought and that are still unread are
 * spilled to private memory. Whoever would sleep sees that the ring has moved
 * and drains again, so this always comes forward.
 */
#include <errno.h>
#include <string.h>

#include "epoll.h"
#include "listener.h"
#include "log.h"
#include "relay.h"
#include "sock.h"
#include "stats.h"
#include "udp.h"
#include "wait.h"

#define IN  (EPOLLIN | EPOLLRDNORM)
#define OUT (EPOLLOUT | EPOLLWRNORM)

static void tx_ack(struct pno_sock *s, uint32_t ack)
{
	uint32_t n = ack - (uint32_t)s->tx_acked;

	if ((int32_t)n > 0 && n <= s->tx_sent - s->tx_acked)
		s->tx_acked += n;
}

/* An event, with OUT if the acknowledgement has opened the window. */
static void event(struct pno_sock *s, uint32_t bits)
{
	uint32_t before = atomic_load_explicit(&s->mask, memory_order_relaxed);

	if (!(before & EPOLLOUT)) {
		pno_sock_refresh(s);
		bits |= atomic_load_explicit(&s->mask, memory_order_relaxed) & OUT;
	}
	if (bits)
		pno_sock_event(s, bits);
}

static const char *on_data(struct pno_sock *s, struct pno_qp *q, const struct pno_record *r,
			   const uint8_t *payload, uint64_t start)
{
	int rc;

	tx_ack(s, r->ack);
	rc = pno_rx_insert(s, q, r->seq, payload, r->len, start, q->chan->drains);
	if (rc == -1)
		return "data beyond the receive window";
	if (rc == -2) {
		pno_sock_die(s, ENOMEM);
		return NULL;
	}
	/* Written under the lock, only read without: no read-modify-write. */
	atomic_store_explicit(&s->arrivals, atomic_load_explicit(&s->arrivals, memory_order_relaxed) + 1,
			      memory_order_relaxed);
	if (likely(pno_sock_flows(s) && !s->fin && s->rcvlowat <= 1 && pno_sock_unread(s))) {
		pno_sock_readable(s, true);
		pno_sock_tell(s, IN);
	} else {
		event(s, IN);
	}
	return NULL;
}

static const char *on_connected(struct pno_sock *s, const struct pno_record *r, const uint8_t *payload)
{
	struct pno_addr_pair p;

	if (r->len < sizeof p)
		return "short Connected";
	if (s->state != PNO_CONNECTING)
		return NULL;
	memcpy(&p, payload, sizeof p);
	pno_sock_set_local(s, &p.local);
	pno_sock_set_peer(s, &p.peer);
	s->state = PNO_OPEN;
	pno_count(sockets_connected);
	pno_sock_event(s, OUT);
	return NULL;
}

/* The flow belongs to another shard: ask there. */
static void redirect(struct pno_sock *s, unsigned shard)
{
	struct pno_connect_req req = { .local = pno_sock_local(s), .peer = pno_sock_peer(s), .proto = PNO_PROTO_TCP,
				       .flags = s->bind_flags };
	struct pno_record r = { .op = PNO_OP_CONNECT, .len = sizeof req, .sock = s->handle };

	s->shard = shard;
	s->qp = &s->qp->chan->qp[shard];
	pno_sock_record(s, s->qp, r, &req);
	pno_sock_send_opts(s); /* those after the first Connect went with it */
}

static void on_error(struct pno_session *ses, struct pno_sock *s, const struct pno_record *r)
{
	if (s->state == PNO_CONNECTING && (r->seq & PNO_ERRNO_REDIRECT) && (r->seq & 0xff) < ses->shards) {
		redirect(s, r->seq & 0xff);
		return;
	}
	if (s->state == PNO_LISTENING) {
		pno_log(PNO_ERROR, "the DPU gave up a listener: %s", strerror(r->seq & 0xfff));
		s->listener->lost = true;
		return;
	}
	pno_sock_die(s, r->seq && r->seq < 4096 ? (int)r->seq : ECONNRESET);
}

static void on_fin(struct pno_sock *s, const struct pno_record *r)
{
	tx_ack(s, r->ack);
	s->fin = true;
	s->rx_fin = r->seq;
	event(s, PNO_STATE_CHANGE);
}

/*
 * We are the home now. From another channel of ours: what was sent before lies
 * in that channel's ring, which nobody may be looking at any more; it is
 * drained now. From another process: what it consumed is
 * gone for us, and our next byte follows what the DPU has received.
 */
static void on_claimed(struct pno_sock *s, const struct pno_record *r, struct pno_drain *d)
{
	int32_t ahead = r->seq - (uint32_t)s->rx_next;

	s->claiming = false;
	s->standing = 0;
	if (s->away) {
		uint64_t read = s->rx_next + ahead;

		while (s->rx_head && s->rx_head->off + s->rx_head->len <= read)
			pno_rx_drop_head(s);
		if (read > s->rx_read)
			s->rx_read = read;
		if (s->rx_next < s->rx_read)
			s->rx_next = s->rx_read;
		s->rx_told = s->rx_read;
		s->tx_sent += (int32_t)(r->ack - (uint32_t)s->tx_sent);
		s->tx_acked = s->tx_sent;
		s->away = s->stranger = s->moved = false;
		pno_sock_event(s, IN | OUT);
	} else {
		tx_ack(s, r->ack);
		d->also |= s->former;
		event(s, 0);
	}
	s->former = 0;
}

/* Another process has it at home now. */
static void on_revoked(struct pno_sock *s)
{
	uint32_t before = atomic_load_explicit(&s->mask, memory_order_relaxed);

	s->shared = s->away = true;
	s->standing = 0;
	pno_count(revoked);
	pno_sock_refresh(s);
	pno_sock_event(s, atomic_load_explicit(&s->mask, memory_order_relaxed) & ~before);
}

/* The channel of somebody who waits for the socket. */
static struct pno_chan *waiter(const struct pno_sock *s)
{
	const struct pno_item *it = s->items;

	return it && it->ep->chan && it->ep->ses == s->ses ? it->ep->chan : s->qp->chan;
}

static const char *on_held(struct pno_sock *s, const struct pno_record *r)
{
	const char *bad;

	tx_ack(s, r->ack);
	bad = pno_relay_held(s, r);
	atomic_fetch_add_explicit(&s->arrivals, 1, memory_order_relaxed);
	event(s, IN);
	return bad;
}

static const char *on_sock(struct pno_session *ses, struct pno_sock *s, struct pno_qp *q, struct pno_drain *d,
			   const struct pno_record *r, const uint8_t *payload, uint64_t start)
{
	switch (r->op) {
	case PNO_OP_DATA:
		return on_data(s, q, r, payload, start);
	case PNO_OP_DGRAM:
		return pno_udp_dgram(s, q, r, payload, start);
	}
	if (unlikely(s->udp))
		return pno_udp_record(s, q, r, payload, d);
	switch (r->op) {
	case PNO_OP_HELD:
		return on_held(s, r);
	case PNO_OP_TX_ACK:
		tx_ack(s, r->ack);
		event(s, 0);
		return NULL;
	case PNO_OP_CONNECTED:
		return on_connected(s, r, payload);
	case PNO_OP_FIN:
		on_fin(s, r);
		return NULL;
	case PNO_OP_ERROR:
		on_error(ses, s, r);
		return NULL;
	case PNO_OP_CLAIMED:
		on_claimed(s, r, d);
		return NULL;
	case PNO_OP_UNSHARED:
		s->shared = s->away;
		return NULL;
	case PNO_OP_HOMELESS:
		if (s->away && !s->claiming && s->state == PNO_OPEN && (s->items || s->waiters))
			pno_sock_claim(s, waiter(s));
		return NULL;
	case PNO_OP_REVOKED:
		on_revoked(s);
		return NULL;
	case PNO_OP_STANDING:
		pno_share_standing(s, r);
		return NULL;
	}
	return NULL;
}

static const char *dispatch(struct pno_session *ses, struct pno_qp *q, struct pno_drain *d,
			    const struct pno_record *r, const uint8_t *payload, uint64_t start)
{
	struct pno_sock *s;
	const char *bad;

	switch (r->op) {
	case PNO_OP_REPLY:
		s = pno_handle_sock(ses, q->shard, r->sock);
		if (!s || !pno_listener_unsubscribed(s, q->chan, r->seq))
			pno_call_reply(ses, r, payload);
		return NULL;
	case PNO_OP_ACCEPT:
		if (r->len < sizeof(struct pno_addr_pair))
			return "short Accept";
		if (r->sock & PNO_HANDLE_HOST)
			return "Accept with a handle of ours";
		pno_listener_park(ses, q, r, payload);
		return NULL;
	}
	if (unlikely(r->op < PNO_OP_REPLY || r->op > PNO_OP_HELD))
		return "unknown record";
	s = pno_handle_sock(ses, q->shard, r->sock);
	if (unlikely(!s)) {
		pno_count(records_stale);
		return NULL;
	}
	pno_lock_inner(&s->lock);
	if (likely(__libc_single_threaded) || likely(pno_handle_sock(ses, q->shard, r->sock) == s)) {
		bad = on_sock(ses, s, q, d, r, payload, start);
	} else {
		pno_count(records_stale);
		bad = NULL;
	}
	pno_unlock_inner(&s->lock);
	return bad;
}

/* False: leave the rest of the ring for the next drain. */
static bool make_room(struct pno_qp *q)
{
	while (q->seen - q->cons > q->d2h_size / 2) {
		pno_qp_give_back(q);
		if (!q->oldest || q->seen - q->cons <= q->d2h_size / 2)
			break;
		if (q->oldest->drain == q->chan->drains)
			return false;
		pno_rx_spill(q->oldest);
		if (atomic_load_explicit(&q->oldest->state, memory_order_relaxed) == PNO_SEG_HELD)
			return true; /* no memory: the ring will have to do */
	}
	return true;
}

static void wake_space_waiters(struct pno_qp *q)
{
	struct pno_sock *s, *next;

	if (!pno_qp_has_room(q))
		return;
	pno_lock(&q->tx_lock);
	s = q->space_list;
	q->space_list = NULL;
	atomic_store_explicit(&q->space_want, false, memory_order_relaxed);
	pno_unlock(&q->tx_lock);
	for (; s; s = next) {
		pno_lock(&s->lock);
		next = s->next_space;
		s->ring_full = false;
		event(s, 0);
		pno_unlock(&s->lock);
	}
}

static bool drain_qp(struct pno_session *ses, struct pno_qp *q, struct pno_drain *d)
{
	const uint8_t *payload;
	struct pno_record r;
	uint64_t start;
	uint32_t n = 0;
	int rc = 0;

	if (unlikely(atomic_load_explicit(&q->space_want, memory_order_relaxed)))
		wake_space_waiters(q);
	while (make_room(q) && (rc = pno_qp_next(q, &r, &payload, &start)) > 0) {
		n++;
		d->violation = dispatch(ses, q, d, &r, payload, start);
		if (unlikely(d->violation))
			return true;
	}
	if (unlikely(rc < 0))
		d->violation = "broken ring";
	pno_qp_give_back(q);
	if (n)
		pno_count_add(records_rx, n);
	return n;
}

bool pno_chan_drain_locked(struct pno_chan *c, struct pno_drain *d)
{
	struct pno_session *ses = c->ses;
	bool any = false;

	if (unlikely(atomic_load_explicit(&ses->lost, memory_order_relaxed)))
		return false;
	c->drains++;
	__atomic_store_n(&c->drained, pno_ticks(), __ATOMIC_RELAXED);
	for (unsigned i = 0; i < ses->shards && !d->violation; i++)
		any |= drain_qp(ses, &c->qp[i], d);
	return any;
}

void pno_drain_finish(struct pno_session *ses, struct pno_drain *d)
{
	if (likely(!d->also && !d->violation))
		return;
	if (d->violation) {
		pno_count(session_hostile);
		pno_session_lose(ses, d->violation);
		return;
	}
	/* Each may name others in turn. */
	while (d->also && !d->violation) {
		struct pno_chan *c = ses->chan[__builtin_ctzll(d->also)];

		d->also &= d->also - 1;
		pno_lock(&c->lock);
		pno_chan_drain_locked(c, d);
		pno_unlock(&c->lock);
	}
	if (d->violation)
		pno_drain_finish(ses, d);
}

bool pno_chan_drain(struct pno_chan *c)
{
	struct pno_drain d = { 0 };
	bool any;

	pno_lock(&c->lock);
	any = pno_chan_drain_locked(c, &d);
	pno_unlock(&c->lock);
	pno_drain_finish(c->ses, &d);
	return any;
}
