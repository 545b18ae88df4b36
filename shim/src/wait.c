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
#include "log.h"
#include "real.h"
#include "sock.h"
#include "stats.h"

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

static void disarm(struct pno_session *ses, uint64_t channels)
{
	unsigned i;

	EACH_CHANNEL(i, channels) {
		struct pno_chan *c = ses->chan[i];

		pno_lock(&c->lock);
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

bool pno_channels_arm(struct pno_session *ses, uint64_t channels, bool (*cond)(void *), void *arg)
{
	struct pno_drain d = { 0 };
	unsigned i;

	channels = live(ses, channels);
	EACH_CHANNEL(i, channels) {
		struct pno_chan *c = ses->chan[i];

		pno_lock(&c->lock);
		c->sleepers++;
		pno_chan_drain_locked(c, &d);
		for (unsigned k = 0; k < ses->shards; k++)
			pno_qp_arm(&c->qp[k]);
		pno_unlock(&c->lock);
	}
	if (unlikely(d.also || d.violation)) {
		disarm(ses, channels);
		pno_drain_finish(ses, &d);
		return false;
	}
	if (cond(arg)) {
		disarm(ses, channels);
		return false;
	}
	pno_full_fence();
	if (moved(ses, channels) || pno_session_check(ses)) {
		disarm(ses, channels);
		return false;
	}
	pno_count(sleeps);
	return true;
}

void pno_channels_awake(struct pno_session *ses, uint64_t channels)
{
	unsigned i;

	channels = live(ses, channels);
	EACH_CHANNEL(i, channels) {
		struct pno_chan *c = ses->chan[i];

		pno_lock(&c->lock);
		c->sleepers--;
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

static struct nest *borrow(struct pno_session *ses)
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
	pno_unlock(&nest_lock);
	if (!n || n->ses == ses)
		return n;
	if (n->ses)
		pno_fd_disown(n->fd);
	n->fd = pno_fd_own(real.epoll_create1(EPOLL_CLOEXEC));
	n->channels = 0;
	n->ses = n->fd < 0 ? NULL : ses;
	if (n->ses)
		return n;
	n->lent = false;
	return NULL;
}

static void give_back(struct nest *n)
{
	pno_lock(&nest_lock);
	n->lent = false;
	pno_unlock(&nest_lock);
}

static bool watch(struct nest *n, uint64_t channels)
{
	unsigned i;

	EACH_CHANNEL(i, channels & ~n->channels) {
		struct epoll_event ev = { .events = EPOLLIN | EPOLLET };

		if (real.epoll_ctl(n->fd, EPOLL_CTL_ADD, n->ses->chan[i]->irq, &ev) < 0)
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
		real.epoll_wait(nest->fd, stale, 2, 0);
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

int pno_sleep(struct pno_session *ses, uint64_t channels, bool (*cond)(void *), void *arg,
	      struct pollfd *fds, nfds_t n, const sigset_t *sigmask, int64_t deadline)
{
	struct pollfd one;
	struct nest *nest = borrow(ses);
	int saved = errno;
	int rc = 0;

	if (unlikely(atomic_load_explicit(&pno_listener_greedy, memory_order_relaxed)))
		pno_listener_yield();
	channels = live(ses, channels);
	if (!nest || !watch(nest, channels)) {
		if (nest)
			give_back(nest);
		return doze(fds, n, sigmask, deadline);
	}
	if (pno_channels_arm(ses, channels, cond, arg)) {
		rc = block(nest, fds ? fds : &one, n, sigmask, deadline);
		pno_channels_awake(ses, channels);
	}
	give_back(nest);
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
}

struct sock_wait {
	struct pno_sock *s;
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

static int sock_wait(struct sock_wait w, int64_t deadline)
{
	struct pno_sock *s = w.s, *outer = pno_waits_for; /* a handler's wait within a wait */
	struct pno_session *ses = s->ses;
	uint64_t channels;
	int rc = 0;

	s->waiters++;
	pno_waits_for = s;
	/* A datagram socket outlives its session, and waits for the next. */
	while (!sock_has(&w) && !s->away && !atomic_load_explicit(&ses->lost, memory_order_relaxed)) {
		channels = pno_sock_channels(s);
		pno_unlock(&s->lock);
		if (!pno_spin(ses, channels, sock_has, &w))
			rc = pno_sleep(ses, channels, sock_has, &w, NULL, 0, NULL, deadline);
		pno_lock(&s->lock);
		if (s->generation != w.generation) {
			pno_waits_for = outer;
			return -EBADF;
		}
		if (rc < 0)
			break;
	}
	s->waiters--;
	pno_waits_for = outer;
	if (unlikely(s->away) && rc >= 0 && s->state != PNO_LISTENING)
		return pno_sock_retake(s);
	return rc == -ETIMEDOUT ? -EAGAIN : rc < 0 ? rc : 0;
}

int pno_sock_wait(struct pno_sock *s, uint32_t bits, int64_t deadline)
{
	return sock_wait((struct sock_wait){ s, bits, s->generation, false, 0 }, deadline);
}

int pno_sock_wait_data(struct pno_sock *s, int64_t deadline)
{
	uint32_t n = atomic_load_explicit(&s->arrivals, memory_order_relaxed);

	return sock_wait((struct sock_wait){ s, EPOLLRDHUP, s->generation, true, n }, deadline);
}
