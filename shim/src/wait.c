/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The order of docs/protocol.md, section 5, host side.
 *
 * Arm: for each channel, with its lock: count ourselves as sleeper, drain, set
 * d2h_seen to what was drained, set arm to the next odd value. Then ask the
 * caller's condition. Then a full fence, then look whether a producer has
 * moved. Only then sleep.
 *
 * Why no wake-up is lost. The DPU stores its producer, then (a DMA read does
 * not pass its posted writes) loads arm. Either our load after the fence sees
 * the new producer, and we do not sleep; or the DPU's load comes after our
 * store of arm, and it raises the interrupt. What another thread of ours
 * drains meanwhile reaches us through the socket or the epoll instance: those
 * announce (waiters, sleepers) under the lock that the drainer takes to
 * deliver, before cond is asked.
 *
 * Several threads on one channel: a newer arm replaces an older one; its
 * interrupt wakes all, and each looks again. So nobody may withdraw an arm
 * while another sleeps: sleepers tells.
 */
#include "wait.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

#include "fdtable.h"
#include "interrupt.h"
#include "listener.h"
#include "log.h"
#include "quiet.h"
#include "real.h"
#include "sock.h"
#include "stats.h"
#include "stay.h"

int64_t pno_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ll + t.tv_nsec;
}

static uint64_t live(struct pno_session *ses, uint64_t channels)
{
	unsigned n = atomic_load(&ses->nchan);

	return n >= 64 ? channels : channels & ((1ull << n) - 1);
}

#define EACH_CHANNEL(i, mask) \
	for (uint64_t m_ = (mask); m_ && ((i) = __builtin_ctzll(m_), 1); m_ &= m_ - 1)

static void disarm(struct pno_session *ses, uint64_t *armed)
{
	unsigned i;

	EACH_CHANNEL(i, *armed) {
		struct pno_chan *c = ses->chan[i];

		pno_lock(&c->lock);
		*armed &= ~(1ull << i);
		if (--c->sleepers == 0)
			for (unsigned k = 0; k < ses->shards; k++)
				pno_qp_disarm(&c->qp[k]);
		pno_unlock(&c->lock);
	}
}

static bool moved(struct pno_session *ses, uint64_t channels)
{
	unsigned i;

	EACH_CHANNEL(i, channels)
		for (unsigned k = 0; k < ses->shards; k++) {
			struct pno_qp *q = &ses->chan[i]->qp[k];

			if (pno_qp_moved(q))
				return true;
			if (atomic_load_explicit(&q->space_want, memory_order_relaxed) && pno_qp_has_room(q))
				return true;
		}
	return false;
}

bool pno_channels_arm(struct pno_session *ses, uint64_t channels, uint64_t *armed, bool (*cond)(void *), void *arg)
{
	struct pno_drain d = { 0 };
	unsigned i;

	channels = live(ses, channels);
	EACH_CHANNEL(i, channels) {
		struct pno_chan *c = ses->chan[i];

		pno_lock(&c->lock);
		c->sleepers++;
		*armed |= 1ull << i;
		pno_chan_drain_locked(c, &d);
		for (unsigned k = 0; k < ses->shards; k++)
			pno_qp_arm(&c->qp[k]);
		pno_unlock(&c->lock);
	}
	if (unlikely(d.also || d.violation)) {
		disarm(ses, armed);
		pno_drain_finish(ses, &d);
		return false;
	}
	if (cond(arg)) {
		disarm(ses, armed);
		return false;
	}
	pno_full_fence();
	if (moved(ses, channels) || pno_session_check(ses)) {
		disarm(ses, armed);
		return false;
	}
	pno_count(sleeps);
	return true;
}

void pno_channels_awake(struct pno_session *ses, uint64_t *armed)
{
	unsigned i;

	EACH_CHANNEL(i, *armed) {
		struct pno_chan *c = ses->chan[i];

		pno_lock(&c->lock);
		if (*armed >> i & 1)
			c->sleepers--;
		*armed &= ~(1ull << i);
		pno_unlock(&c->lock);
	}
}

/* Kernel epoll sets that hold interrupts, lent to one sleeper at a time. */
#define NESTS 1024

/* How long a sleep without one is. */
#define DOZE_NANOS 1000000

static struct nest {
	int fd;
	uint64_t channels;
	struct pno_session *ses;
	bool lent;
} nests[NESTS];
static pno_lock_t nest_lock; /* a leaf */

/* Into *lent, so that it is never lost. */
static struct nest *borrow(struct pno_session *ses, struct nest **lent)
{
	struct nest *n = NULL, *empty = NULL;

	pno_lock(&nest_lock);
	for (int i = 0; i < NESTS && !n; i++) {
		if (nests[i].lent)
			continue;
		if (nests[i].ses == ses)
			n = &nests[i];
		else if (!empty)
			empty = &nests[i];
	}
	if (!n)
		n = empty;
	if (n)
		n->lent = true;
	*lent = n;
	pno_unlock(&nest_lock);
	if (!n || n->ses == ses)
		return n;
	pno_section_enter();
	if (n->ses)
		pno_fd_disown(n->fd);
	n->fd = pno_fd_own(real.epoll_create1(EPOLL_CLOEXEC));
	n->channels = 0;
	n->ses = n->fd < 0 ? NULL : ses;
	pno_section_leave();
	return n->ses ? n : NULL;
}

static void give_back(struct nest **lent)
{
	pno_lock(&nest_lock);
	if (*lent)
		(*lent)->lent = false;
	*lent = NULL;
	pno_unlock(&nest_lock);
}

static bool watch(struct nest *n, uint64_t channels)
{
	unsigned i;

	EACH_CHANNEL(i, channels & ~n->channels) {
		struct epoll_event ev = { .events = EPOLLIN | EPOLLET };

		/* EEXIST: a handler has left the call in which it was added. */
		if (real.epoll_ctl(n->fd, EPOLL_CTL_ADD, n->ses->chan[i]->irq, &ev) < 0 && errno != EEXIST)
			return false;
		n->channels |= 1ull << i;
	}
	return true;
}

/* The kernel half of pno_sleep. */
static int block(struct nest *nest, struct pollfd *fds, nfds_t n, const sigset_t *sigmask, int64_t deadline)
{
	struct timespec left = { 0 }, *timeout = NULL;
	struct epoll_event stale[2];
	int rc;

	if (!n && deadline == PNO_NEVER) {
		rc = pno_sleep_epoll(nest->fd, stale, 2, -1, sigmask);
		if (rc == -EINTR && !pno_handled)
			return 0; /* by a signal without handler, which ends no call but epoll_wait */
		if (rc <= 0)
			return rc;
		pno_count(wakeups);
		return 0;
	}
	if (deadline != PNO_NEVER) {
		int64_t t = deadline - pno_now();

		if (t <= 0)
			return -ETIMEDOUT;
		left = (struct timespec){ t / 1000000000, t % 1000000000 };
		timeout = &left;
	}
	fds[n] = (struct pollfd){ .fd = nest->fd, .events = POLLIN };
	rc = pno_sleep_ppoll(fds, n + 1, timeout, sigmask);
	if (rc < 0)
		return rc;
	if (rc == 0)
		return -ETIMEDOUT;
	if (fds[n].revents) {
		rc--;
		pno_count(wakeups);
		quiet_take(nest->fd, stale, 2);
	}
	return rc;
}

/* No descriptor is left to sleep on well: a short turn. 0: look again. */
static int doze(struct pollfd *fds, nfds_t n, const sigset_t *sigmask, int64_t deadline)
{
	int64_t left = deadline == PNO_NEVER ? DOZE_NANOS : deadline - pno_now();
	struct timespec turn = { .tv_nsec = left < DOZE_NANOS ? left : DOZE_NANOS };

	if (left <= 0)
		return -ETIMEDOUT;
	return pno_sleep_ppoll(fds, n, &turn, sigmask);
}

struct sleep {
	struct pno_stay stay;
	struct nest *nest;
	uint64_t armed;
	struct pno_session *ses;
	uint64_t channels;
	bool (*cond)(void *);
	void *arg;
	struct pollfd *fds;
	nfds_t n;
	const sigset_t *sigmask;
	int64_t deadline;
};

static void sleep_left(struct pno_stay *stay)
{
	struct sleep *s = (struct sleep *)stay;

	pno_channels_awake(s->ses, &s->armed);
	give_back(&s->nest);
}

static int sleep_in_nest(void *arg)
{
	struct sleep *s = arg;
	struct nest *nest = borrow(s->ses, &s->nest);
	struct pollfd one;
	int rc = 0;

	if (!nest || !watch(nest, s->channels)) {
		give_back(&s->nest);
		return doze(s->fds, s->n, s->sigmask, s->deadline);
	}
	if (pno_channels_arm(s->ses, s->channels, &s->armed, s->cond, s->arg)) {
		rc = block(nest, s->fds ? s->fds : &one, s->n, s->sigmask, s->deadline);
		pno_channels_awake(s->ses, &s->armed);
	}
	give_back(&s->nest);
	return rc;
}

int pno_sleep(struct pno_session *ses, uint64_t channels, bool (*cond)(void *), void *arg,
	      struct pollfd *fds, nfds_t n, const sigset_t *sigmask, int64_t deadline)
{
	struct sleep s = { .ses = ses, .channels = live(ses, channels), .cond = cond, .arg = arg,
			   .fds = fds, .n = n, .sigmask = sigmask, .deadline = deadline };
	int saved = errno, rc;

	if (unlikely(atomic_load_explicit(&pno_listener_greedy, memory_order_relaxed)))
		pno_listener_yield();
	rc = pno_stay(&s.stay, sleep_left, sleep_in_nest, &s);
	errno = saved;
	return rc;
}

/*
 * Spinning is worth its cycles only if work comes soon. Each failure halves
 * the next attempt, success restores it; after 64 sleeps without an attempt
 * one is made again.
 */
static __thread uint32_t spin_budget = UINT32_MAX, spin_rest;

bool pno_spin(struct pno_session *ses, uint64_t channels, bool (*cond)(void *), void *arg)
{
	int64_t end;
	unsigned i;

	channels = live(ses, channels);
	if (moved(ses, channels)) { /* what an interrupt has told of */
		EACH_CHANNEL(i, channels)
			pno_chan_drain(ses->chan[i]);
		if (cond(arg))
			return true;
	}
	if (!ses->spin_nanos)
		return false;
	if (spin_budget > ses->spin_nanos)
		spin_budget = ses->spin_nanos;
	if (spin_budget < 500) {
		if (++spin_rest < 64)
			return false;
		spin_rest = 0;
		spin_budget = ses->spin_nanos / 4;
	}
	pno_count(spins);
	end = pno_now() + spin_budget;
	do {
		for (int k = 0; k < 16; k++)
			pno_pause();
		if (!moved(ses, channels))
			continue;
		EACH_CHANNEL(i, channels)
			pno_chan_drain(ses->chan[i]);
		if (cond(arg)) {
			pno_count(spins_hit);
			spin_budget = ses->spin_nanos;
			return true;
		}
	} while (pno_now() < end);
	spin_budget /= 2;
	return false;
}

void pno_wait_child(void)
{
	memset(nests, 0, sizeof nests);
	atomic_store(&nest_lock.held, 0);
	pno_stay_child();
}

struct sock_wait {
	struct pno_stay stay;
	struct pno_sock *s, *outer; /* outer: of a wait that a handler waits within */
	int64_t deadline;
	bool counted; /* among its waiters */
	uint32_t bits, generation;
	bool data; /* more arrivals than: */
	uint32_t arrivals;
};

static bool sock_has(void *arg)
{
	struct sock_wait *w = arg;

	return w->s->generation != w->generation ||
	       (w->data && atomic_load_explicit(&w->s->arrivals, memory_order_relaxed) != w->arrivals) ||
	       (atomic_load_explicit(&w->s->mask, memory_order_acquire) & (w->bits | EPOLLERR | EPOLLHUP));
}

__thread struct pno_sock *pno_waits_for __attribute__((tls_model("initial-exec")));

/* Socket locked. */
static void uncount(struct sock_wait *w)
{
	if (w->counted && w->s->generation == w->generation && w->s->waiters)
		w->s->waiters--;
	w->counted = false;
	pno_waits_for = w->outer;
}

static void wait_left(struct pno_stay *stay)
{
	struct sock_wait *w = (struct sock_wait *)stay;

	pno_lock(&w->s->lock);
	uncount(w);
	pno_unlock(&w->s->lock);
}

/* Locked on entry and return. */
static int wait_counted(void *arg)
{
	struct sock_wait *w = arg;
	struct pno_sock *s = w->s;
	struct pno_session *ses = s->ses;
	uint64_t channels;
	int rc = 0;

	w->outer = pno_waits_for;
	w->counted = true;
	s->waiters++;
	pno_waits_for = s;
	/* A datagram socket outlives its session, and waits for the next. */
	while (!sock_has(w) && !s->away && !atomic_load_explicit(&ses->lost, memory_order_relaxed)) {
		channels = pno_sock_channels(s);
		pno_unlock(&s->lock);
		if (!pno_spin(ses, channels, sock_has, w))
			rc = pno_sleep(ses, channels, sock_has, w, NULL, 0, NULL, w->deadline);
		pno_lock(&s->lock);
		if (s->generation != w->generation)
			rc = -EBADF;
		if (rc < 0)
			break;
	}
	/* Whoever ends the session may be waiting for this very lock, and the caller
	 * comes back until it has heard of it. */
	if (unlikely(atomic_load_explicit(&ses->lost, memory_order_relaxed)) && s->generation == w->generation)
		pno_session_lose_sock(ses, s);
	uncount(w);
	return rc;
}

static int sock_wait(struct sock_wait *w)
{
	struct pno_sock *s = w->s;
	int rc = pno_stay(&w->stay, wait_left, wait_counted, w);

	if (unlikely(s->away) && rc >= 0 && s->state != PNO_LISTENING)
		return pno_sock_retake(s);
	return rc == -ETIMEDOUT ? -EAGAIN : rc < 0 ? rc : 0;
}

int pno_sock_wait(struct pno_sock *s, uint32_t bits, int64_t deadline)
{
	struct sock_wait w = { .s = s, .bits = bits, .generation = s->generation, .deadline = deadline };

	return sock_wait(&w);
}

int pno_sock_wait_data(struct pno_sock *s, int64_t deadline)
{
	struct sock_wait w = { .s = s, .bits = EPOLLRDHUP, .generation = s->generation, .deadline = deadline,
			       .data = true,
			       .arrivals = atomic_load_explicit(&s->arrivals, memory_order_relaxed) };

	return sock_wait(&w);
}
