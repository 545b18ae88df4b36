/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Listeners.
 *
 * A listener exists on every shard. Connections come to a channel that has
 * subscribed, and wait in that channel's queue until accept takes them. Each
 * poller is served from its own queue, so that two threads with one listener
 * do not wake each other and connections stay with the poller they came to.
 *
 * Leaving. nginx takes its listener out of epoll and puts it back at once,
 * now and then; so a subscription that nobody wants any more ends only at the
 * next epoll_wait (settle). Unsubscribe makes the DPU give the connections in
 * our queue to somebody else: we drop them, and Accepts that are still under
 * way, until it has answered. Only then may we subscribe again.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "epoll.h"
#include "listener.h"
#include "log.h"
#include "quiet.h"
#include "sock.h"
#include "stats.h"
#include "wait.h"

#define MOST_UNACCEPTED 64

atomic_bool pno_listener_unsettled, pno_listener_greedy;
static struct pno_listener *listeners;
static pno_lock_t list_lock; /* a leaf */

static bool wanted(const struct pno_queue *q)
{
	return q->users || q->sticky;
}

static void tell_all(struct pno_sock *s, struct pno_chan *c, uint8_t op, uint32_t seq, uint32_t ack)
{
	for (unsigned i = 0; i < s->ses->shards; i++)
		if (s->listener->handle[i])
			pno_sock_record(s, &c->qp[i], (struct pno_record){
				.op = op, .sock = s->listener->handle[i], .seq = seq, .ack = ack }, NULL);
}

static void subscribe(struct pno_sock *s, struct pno_chan *c)
{
	struct pno_queue *q = &s->listener->q[c->index];

	if (q->subscribed || q->leaving || s->listener->lost)
		return;
	q->subscribed = true;
	s->listener->last = c->index;
	tell_all(s, c, PNO_OP_SUBSCRIBE, 0, MOST_UNACCEPTED);
}

/* One may be that of an epoll instance that nobody waits on at present. */
uint64_t pno_listener_channels(const struct pno_sock *s)
{
	uint64_t channels = 0;

	for (unsigned i = 0; i < PNO_MAX_CHANNELS; i++)
		if (s->listener->q[i].subscribed)
			channels |= 1ull << i;
	return channels;
}

/* An epoll instance waits for it, and whoever accepts may have what comes there. */
static bool polled(const struct pno_sock *s)
{
	for (unsigned i = 0; i < PNO_MAX_CHANNELS; i++)
		if (s->listener->q[i].users)
			return true;
	return false;
}

/* A poller has come: connections that an accept before it wanted elsewhere
 * are to come to the poller. */
static void leave_to_pollers(struct pno_sock *s, struct pno_chan *c)
{
	for (unsigned i = 0; i < PNO_MAX_CHANNELS; i++) {
		struct pno_queue *q = &s->listener->q[i];

		if (i == c->index || !q->sticky)
			continue;
		q->sticky = false;
		if (q->subscribed && !q->users)
			atomic_store(&pno_listener_unsettled, true);
	}
}

/* The last poller has gone, and others wait for what came to it. */
static void succeed_poller(struct pno_sock *s)
{
	s->listener->q[s->qp->chan->index].sticky = true;
	subscribe(s, s->qp->chan);
	pno_chan_kick(s->qp->chan); /* they may not hear this channel yet */
}

void pno_listener_want(struct pno_sock *s, struct pno_chan *c, int users, bool sticky)
{
	struct pno_queue *q = &s->listener->q[c->index];

	q->users += users;
	if (sticky && !polled(s)) {
		q->sticky = true;
		if (s->shared)
			atomic_store(&pno_listener_greedy, true);
	}
	if (users > 0 && !s->waiters)
		leave_to_pollers(s, c);
	else if (users > 0)
		atomic_store(&pno_listener_unsettled, true); /* when they are done */
	else if (users < 0 && s->waiters && !polled(s))
		succeed_poller(s);
	if (wanted(q))
		subscribe(s, c);
	else if (q->subscribed)
		atomic_store(&pno_listener_unsettled, true);
}

/* Connections that the DPU takes back, or resets with the listener. */
static void drop_parked(struct pno_sock *s, struct pno_queue *q)
{
	struct pno_sock *c;

	while ((c = q->head)) {
		q->head = c->next_parked;
		pno_handle_drop(c->ses, c->shard, c->handle);
		pno_sock_free(c);
		s->listener->parked--;
	}
	q->tail = NULL;
	atomic_store_explicit(&q->n, 0, memory_order_relaxed);
}

static void unsubscribe(struct pno_sock *s, struct pno_chan *c)
{
	struct pno_queue *q = &s->listener->q[c->index];

	q->subscribed = false;
	s->listener->last = c->index;
	q->leaving = s->ses->shards;
	q->tag = atomic_fetch_add(&s->ses->tag, 1) + 1;
	if (!q->tag)
		q->tag = atomic_fetch_add(&s->ses->tag, 1) + 1;
	drop_parked(s, q);
	pno_sock_refresh(s);
	tell_all(s, c, PNO_OP_UNSUBSCRIBE, q->tag, 0);
}

struct pno_sock *pno_listener_nth(unsigned n)
{
	struct pno_sock *s;
	struct pno_listener *l;

	pno_lock(&list_lock);
	for (l = listeners; l && n--; l = l->next)
		;
	s = l ? l->sock : NULL; /* which stays, though it may become something else */
	pno_unlock(&list_lock);
	return s;
}

static bool served(const struct pno_sock *s)
{
	return s->state == PNO_LISTENING && s->ses && !s->listener->lost;
}

/* One that has been reset meanwhile would not come again. */
static bool all_alive(const struct pno_queue *q)
{
	bool alive = true;

	for (struct pno_sock *c = q->head; c && alive; c = c->next_parked) {
		pno_lock(&c->lock);
		alive = c->state == PNO_PARKED;
		pno_unlock(&c->lock);
	}
	return alive;
}

/* Takes connections off the channels that no poller has: how many. */
static uint32_t uproot(struct pno_sock *s, struct pno_chan *c, uint64_t *channels)
{
	uint32_t n = 0;

	for (unsigned i = 0; i < atomic_load(&s->ses->nchan); i++) {
		struct pno_queue *q = &s->listener->q[i];

		if (i == c->index || q->users || !q->head || !all_alive(q))
			continue;
		n += atomic_load_explicit(&q->n, memory_order_relaxed);
		*channels |= 1ull << i;
		q->sticky = false;
		unsubscribe(s, s->ses->chan[i]);
	}
	return n;
}

/* How long who comes to wait for edges waits for what waits. */
#define GATHER_NANOS 20000000ll

void pno_listener_gather(struct pno_sock *s, struct pno_chan *c)
{
	struct pno_session *ses = s->ses;
	uint32_t generation = s->generation, n;
	uint64_t channels = 1ull << c->index;
	int64_t end;

	if (!served(s) || s->shared || s->waiters || !(n = uproot(s, c, &channels)))
		return;
	n += atomic_load_explicit(&s->listener->q[c->index].n, memory_order_relaxed);
	end = pno_now() + GATHER_NANOS;
	for (long nap = 0; pno_now() < end; nap = 20000) {
		pno_sock_unlock(s);
		if (nap)
			quiet_nap(nap);
		for (uint64_t m = channels; m; m &= m - 1)
			pno_chan_drain(ses->chan[__builtin_ctzll(m)]);
		pno_lock(&s->lock);
		if (s->generation != generation || !served(s) || s->ses != ses ||
		    atomic_load_explicit(&s->listener->q[c->index].n, memory_order_relaxed) >= n)
			return;
	}
}

/* False: not yet. */
static bool settle(struct pno_sock *s, struct pno_chan *c, bool sleeps)
{
	struct pno_queue *q = &s->listener->q[c->index];

	if (q->sticky && !q->users && polled(s)) {
		if (s->waiters)
			return false;
		q->sticky = false;
	}
	if (!q->subscribed || wanted(q))
		return true;
	if (q->head && !sleeps && !s->shared)
		return false;
	unsubscribe(s, c);
	return true;
}

void pno_listener_settle(bool sleeps)
{
	struct pno_sock *s;
	bool still = false;

	atomic_store(&pno_listener_unsettled, false);
	for (unsigned i = 0; (s = pno_listener_nth(i)); i++) {
		pno_lock(&s->lock);
		if (served(s))
			for (unsigned k = 0; k < atomic_load(&s->ses->nchan); k++)
				still |= !settle(s, s->ses->chan[k], sleeps);
		pno_unlock(&s->lock);
	}
	if (still)
		atomic_store(&pno_listener_unsettled, true);
}

static void yield(struct pno_sock *s)
{
	for (unsigned k = 0; k < atomic_load(&s->ses->nchan); k++) {
		struct pno_queue *q = &s->listener->q[k];

		if (!q->sticky || q->users)
			continue;
		q->sticky = false;
		if (q->subscribed)
			unsubscribe(s, s->ses->chan[k]);
	}
}

void pno_listener_yield(void)
{
	struct pno_sock *s;
	bool still = false;

	atomic_store(&pno_listener_greedy, false);
	for (unsigned i = 0; (s = pno_listener_nth(i)); i++) {
		pno_lock(&s->lock);
		if (served(s) && s->shared) {
			if (s->waiters)
				still = true; /* another thread waits for it */
			else
				yield(s);
		}
		pno_unlock(&s->lock);
	}
	if (still)
		atomic_store(&pno_listener_greedy, true);
}

bool pno_listener_unsubscribed(struct pno_sock *s, struct pno_chan *c, uint32_t tag)
{
	struct pno_queue *q;
	bool ours;

	pno_lock(&s->lock);
	q = s->state == PNO_LISTENING ? &s->listener->q[c->index] : NULL;
	ours = q && q->leaving && q->tag == tag;
	if (ours && --q->leaving == 0) {
		q->tag = 0;
		if (wanted(q))
			subscribe(s, c);
	}
	pno_unlock(&s->lock);
	return ours;
}

/* Only pollers that hear this channel are told, for the others would find
 * nothing; unless it is one that no poller takes from. */
static void announce(struct pno_sock *l, struct pno_chan *c)
{
	bool for_all = !l->listener->q[c->index].users;

	pno_sock_refresh(l);
	for (struct pno_item *it = l->items; it; it = it->in_sock)
		if (!it->in_kernel && (it->events & EPOLLIN) && (for_all || it->ep->channels >> c->index & 1))
			pno_epoll_push(it);
	if (pno_sock_awaited(l))
		pno_chan_kick(l->qp->chan);
}

void pno_listener_park(struct pno_session *ses, struct pno_qp *q, const struct pno_record *r,
		       const uint8_t *payload)
{
	struct pno_sock *l = pno_handle_sock(ses, q->shard, r->seq), *s;
	struct pno_addr_pair pair;
	struct pno_queue *queue;

	s = l ? pno_sock_new(AF_INET) : NULL;
	if (!s) {
		pno_count(records_stale);
		return;
	}
	memcpy(&pair, payload, sizeof pair);
	s->ses = ses;
	s->qp = q;
	s->shard = q->shard;
	s->handle = r->sock;
	pno_sock_set_local(s, &pair.local);
	pno_sock_set_peer(s, &pair.peer);
	s->state = PNO_PARKED;
	s->connect_told = true;

	pno_lock(&l->lock);
	queue = l->listener ? &l->listener->q[q->chan->index] : NULL;
	if (l->state != PNO_LISTENING || !queue || !queue->subscribed ||
	    !pno_handle_enter(ses, q->shard, r->sock, s)) {
		pno_unlock(&l->lock);
		pno_sock_free(s);
		pno_count(records_stale);
		return;
	}
	s->domain = l->domain;
	if (queue->head)
		queue->tail->next_parked = s;
	else
		queue->head = s;
	queue->tail = s;
	atomic_fetch_add_explicit(&queue->n, 1, memory_order_relaxed);
	l->listener->parked++;
	announce(l, q->chan);
	pno_unlock(&l->lock);
}

struct pno_sock *pno_listener_take(struct pno_sock *s)
{
	struct pno_listener *l = s->listener;
	unsigned mine = pno_thread_chan(s->ses)->index;
	struct pno_queue *q = &l->q[mine];
	struct pno_sock *c;

	if (!q->head) {
		/* Other pollers' connections are for those who have none. */
		bool any = !q->users;

		for (unsigned i = 0; i < PNO_MAX_CHANNELS && !q->head; i++)
			if (any || !l->q[i].users)
				q = &l->q[i];
	}
	c = q->head;
	if (!c)
		return NULL;
	q->head = c->next_parked;
	if (!q->head)
		q->tail = NULL;
	c->next_parked = NULL;
	l->last = c->qp->chan->index; /* by which Accepted is about to be sent */
	atomic_fetch_sub_explicit(&q->n, 1, memory_order_relaxed);
	l->parked--;
	pno_sock_refresh(s);
	return c;
}

void pno_listener_enlist(struct pno_listener *l)
{
	pno_lock(&list_lock);
	l->next = listeners;
	listeners = l;
	pno_unlock(&list_lock);
}

/* Where we spoke last of this listener: Close must not overtake an Accepted or
 * an Unsubscribe, and only records of one ring are sure to stay in order. */
static struct pno_chan *closing_channel(struct pno_sock *s)
{
	unsigned last = s->listener->last;

	return s->ses->chan[last < atomic_load(&s->ses->nchan) ? last : 0];
}

void pno_listener_close(struct pno_sock *s)
{
	struct pno_listener *l = s->listener, **p;

	for (unsigned i = 0; i < PNO_MAX_CHANNELS; i++)
		drop_parked(s, &l->q[i]);
	if (s->ses && !l->lost) {
		tell_all(s, closing_channel(s), PNO_OP_CLOSE, 0, 0);
		for (unsigned i = 0; i < s->ses->shards; i++)
			if (l->handle[i])
				pno_handle_drop(s->ses, i, l->handle[i]);
	}
	pno_lock(&list_lock);
	for (p = &listeners; *p && *p != l; p = &(*p)->next)
		;
	if (*p)
		*p = l->next;
	pno_unlock(&list_lock);
}

static void turn_away(struct pno_sock *s, struct pno_queue *q)
{
	for (struct pno_sock *c = q->head; c; c = c->next_parked)
		if (c->ses)
			pno_sock_record(c, c->qp, (struct pno_record){
				.op = PNO_OP_CLOSE, .flags = PNO_FLAG_CLOSE_RESET, .sock = c->handle }, NULL);
	drop_parked(s, q);
}

/* Nobody has asked for this port: it is given back, and the socket is as good
 * as new. Who looks at the queues without the lock may go on doing so. */
static void dissolve(struct pno_sock *s)
{
	pno_sock_release(s);
	s->bound = false;
	s->unconnected = true;
	s->state = PNO_DEAD;
}

/* The port stays bound, for this process and those that share it; who waits to
 * be accepted is turned away, who comes is refused. */
void pno_listener_stop(struct pno_sock *s)
{
	struct pno_listener *l = s->listener;

	l->stopped = true;
	for (unsigned i = 0; i < s->ses->shards; i++)
		if (l->handle[i])
			pno_sock_record(s, &s->ses->chan[0]->qp[i], (struct pno_record){
				.op = PNO_OP_SHUTDOWN, .flags = 0, .sock = l->handle[i] }, NULL);
	for (unsigned i = 0; i < PNO_MAX_CHANNELS; i++)
		turn_away(s, &l->q[i]);
	if (s->any_port && !s->shared)
		dissolve(s);
	pno_sock_event(s, PNO_STATE_CHANGE);
}

struct pno_sock *pno_listener_by_cookie(uint64_t cookie)
{
	struct pno_listener *l;
	struct pno_sock *s;

	pno_lock(&list_lock);
	for (l = listeners; l && l->cookie != cookie; l = l->next)
		;
	s = l ? l->sock : NULL;
	pno_unlock(&list_lock);
	return s;
}

/* The queues belong to a session that is over. */
void pno_listener_empty(struct pno_sock *s)
{
	struct pno_listener *l = s->listener;

	for (unsigned i = 0; i < PNO_MAX_CHANNELS; i++) {
		drop_parked(s, &l->q[i]);
		memset(&l->q[i], 0, sizeof l->q[i]);
	}
	l->last = 0;
	l->passed = false;
	pno_sock_refresh(s);
}

/*
 * In the child of a fork. The parent keeps its queues; what waits in the
 * child's copies is not the child's, though it holds a share of it.
 */
void pno_listener_child(struct pno_sock *s)
{
	struct pno_listener *l = s->listener;

	for (unsigned i = 0; i < PNO_MAX_CHANNELS; i++) {
		struct pno_queue *q = &l->q[i];
		struct pno_sock *c;

		while ((c = q->head)) {
			q->head = c->next_parked;
			pno_sock_orphan(c);
			pno_sock_free(c);
		}
		memset(q, 0, sizeof *q);
	}
	l->parked = l->last = 0;
	pno_sock_refresh(s);
}

/* The child has its session now: the same handles, under a new roof. */
void pno_listener_adopted(struct pno_sock *s)
{
	for (unsigned i = 0; i < s->ses->shards; i++)
		if (s->listener->handle[i])
			pno_handle_enter(s->ses, i, s->listener->handle[i], s);
}

void pno_listener_child_locks(void)
{
	atomic_store(&list_lock.held, 0);
}
