/* SPDX-License-Identifier: Apache-2.0 */

/*
 * epoll over two worlds.
 *
 * Every registration of an offloaded socket is an item; an event on the socket
 * puts its items on their instances' ready lists. epoll_wait takes items off
 * the front, asks the socket's mask, reports, and puts level-triggered ones
 * back at the end. Nothing is scanned, nothing is looked up.
 *
 * The kernel's set holds the kernel's descriptors as ever, and nothing else,
 * for its descriptor may be polled or be in another set. An instance that has
 * a channel sleeps on its bed, a set of the shim's own with the kernel's set in
 * it and the interrupt eventfd of each channel that delivers here,
 * edge-triggered, so that it never has to be read.
 *
 * Without a channel it sleeps on the kernel's set itself (raw). Who gives it
 * one meanwhile wakes those by a descriptor that is put into the set for as
 * long as they sleep; its data is the address of pno_epoll_ours, which no
 * program can have.
 *
 * Neither side starves: while offloaded events keep coming the kernel's set is
 * asked every KERNEL_EVERY calls, first and for half of the room, and again in
 * the next call for as long as it has something; and always before 0 is
 * returned. Each side goes round among its own.
 *
 * A fresh socket may be registered before it is known whose it will be. It is
 * then in the kernel's set like any other, with an item that remembers it
 * (in_kernel), and moves over when it is bound or connected on the DPU.
 */
#include "epoll.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "fault.h"
#include "listener.h"
#include "log.h"
#include "real.h"
#include "stats.h"
#include "stay.h"
#include "wait.h"

#define KERNEL_EVERY 16

char pno_epoll_ours;

static void ready_append(struct pno_epoll *ep, struct pno_item *it)
{
	it->queued = true;
	it->ready = NULL;
	it->ready_prev = ep->ready_tail;
	if (ep->ready_tail)
		ep->ready_tail->ready = it;
	else
		ep->ready_head = it;
	ep->ready_tail = it;
}

void pno_epoll_unready(struct pno_epoll *ep, struct pno_item *it)
{
	if (it->ready_prev)
		it->ready_prev->ready = it->ready;
	else
		ep->ready_head = it->ready;
	if (it->ready)
		it->ready->ready_prev = it->ready_prev;
	else
		ep->ready_tail = it->ready_prev;
	it->queued = false;
}

void pno_epoll_push(struct pno_item *it)
{
	struct pno_epoll *ep = it->ep;
	bool kick;

	pno_lock_inner(&ep->lock);
	if (!it->queued)
		ready_append(ep, it);
	kick = ep->sleepers && !ep->kicked;
	if (kick)
		ep->kicked = true;
	pno_unlock_inner(&ep->lock);
	if (unlikely(kick))
		pno_chan_kick(ep->chan);
	if (unlikely(ep->beacon))
		pno_epoll_ring(ep);
}

/* What the program would see of an item now. Listeners: only connections that
 * came to this poller count. */
static uint32_t item_events(const struct pno_item *it)
{
	const struct pno_sock *s = it->sock;
	uint32_t m = atomic_load_explicit(&s->mask, memory_order_relaxed);

	if (unlikely(s->state == PNO_LISTENING) && !pno_listener_ready(s, it->ep->channels))
		m &= ~(EPOLLIN | EPOLLRDNORM);
	return m & (it->events | EPOLLERR | EPOLLHUP);
}

static int collect(struct pno_epoll *ep, struct epoll_event *events, int max)
{
	struct pno_item *last, *it;
	int n = 0;

	pno_lock(&ep->lock);
	last = ep->ready_tail;
	while (n < max && (it = ep->ready_head)) {
		uint32_t m;

		pno_epoll_unready(ep, it);
		m = it->events ? item_events(it) : 0;
		if (m) {
			if (unlikely(!pno_put32(&events[n].events, m) || !pno_put64(&events[n].data, it->data))) {
				ready_append(ep, it);
				n = n ? n : -EFAULT;
				break;
			}
			n++;
			if (it->events & EPOLLONESHOT)
				it->events = 0;
			else if (!(it->events & EPOLLET))
				ready_append(ep, it);
		}
		if (it == last)
			break;
	}
	pno_unlock(&ep->lock);
	return n;
}

bool pno_epoll_any(struct pno_epoll *ep)
{
	bool any = false;

	for (struct pno_item *it = ep->ready_head; it && !any; it = it->ready)
		any = it->events && item_events(it);
	return any;
}

bool pno_epoll_readable(struct pno_epoll *ep)
{
	bool any;

	pno_lock(&ep->lock);
	any = pno_epoll_any(ep);
	if (!any && ep->sleepers)
		ep->kicked = false; /* who sleeps has seen all there was */
	pno_unlock(&ep->lock);
	return any;
}

void pno_epoll_attend(struct pno_epoll *ep, bool on)
{
	pno_lock(&ep->lock);
	if (on) {
		ep->sleepers++;
		ep->kicked = false;
	} else if (ep->sleepers) { /* the descriptor may name another one by now */
		ep->sleepers--;
	}
	pno_unlock(&ep->lock);
}

/* Timeouts below a millisecond round up; a wait that ends early by rounding
 * down would spin. */
static int milliseconds(int64_t ns)
{
	return ns < 0 ? -1 : ns >= INT_MAX * 1000000ll ? INT_MAX : (int)((ns + 999999) / 1000000);
}

/* Takes our own wake-up out of what the kernel says. */
static int without_ours(struct pno_epoll *ep, struct epoll_event *events, int n, bool *woken)
{
	int kept = 0;

	for (int i = 0; i < n; i++) {
		if (unlikely(events[i].data.ptr == &pno_epoll_ours))
			*woken = true;
		else if (kept++ != i)
			events[kept - 1] = events[i];
	}
	if (unlikely(kept < n))
		pno_epoll_beacon(ep); /* its ring was meant for others, too */
	return n < 0 ? n : kept;
}

/* Asks the kernel's set. */
static int kernel_look(struct pno_epoll *ep, struct epoll_event *events, int max)
{
	bool woken;

	atomic_store_explicit(&ep->since_kernel, 0, memory_order_relaxed);
	return without_ours(ep, events, real.epoll_wait(ep->fd, events, max, 0), &woken);
}

/* Sleeps on the kernel's set itself. *woken: it was us who ended it. */
static int sleep_raw(struct pno_epoll *ep, struct epoll_event *events, int max, int64_t ns,
		     const sigset_t *sigmask, bool *woken)
{
	return without_ours(ep, events, pno_sleep_epoll(ep->fd, events, max, milliseconds(ns), sigmask), woken);
}

/* Sleeps on the bed. *woken: there may be something, of whatever kind. */
static int sleep_in_bed(struct pno_epoll *ep, struct epoll_event *events, int max, int64_t ns,
			const sigset_t *sigmask, bool *woken)
{
	struct epoll_event found[4];
	int n = pno_sleep_epoll(ep->bed, found, 4, milliseconds(ns), sigmask);

	*woken |= n > 0;
	for (int i = 0; i < n; i++) {
		if (found[i].data.ptr == &pno_epoll_ours)
			continue;
		pno_epoll_settle(ep);
		n = kernel_look(ep, events, max);
		return n < 0 ? -errno : n;
	}
	return n < 0 ? n : 0;
}

static void drain(struct pno_epoll *ep)
{
	uint64_t m = ep->channels;

	if (likely(!(m & (m - 1)))) {
		pno_chan_drain(ep->chan);
		return;
	}
	for (; m; m &= m - 1)
		pno_chan_drain(ep->ses->chan[__builtin_ctzll(m)]);
}

static bool has_ready(void *arg)
{
	struct pno_epoll *ep = arg;

	return __atomic_load_n(&ep->ready_head, __ATOMIC_RELAXED) != NULL;
}

/* A call that sleeps. */
struct doze {
	struct pno_stay stay;
	struct pno_epoll *ep;
	struct pno_session *ses;
	bool alive, announced, raw;
	uint64_t armed;
	struct epoll_event *events;
	int max;
	int64_t ns;
	const sigset_t *sigmask;
	bool again, woken;
};

/*
 * Sleepers are announced before the rings are armed, under the lock that
 * whoever pushes an item takes: an item pushed after nothing_ready kicks us,
 * one pushed before is seen by it.
 */
static void announce(struct doze *d)
{
	struct pno_epoll *ep = d->ep;

	pno_lock(&ep->lock);
	if (!ep->sleepers++)
		ep->kicked = true; /* what our own drain finds needs no kick */
	d->announced = true;
	d->raw = !ep->bed;
	ep->raw += d->raw;
	pno_unlock(&ep->lock);
}

static bool something_ready(void *arg)
{
	struct pno_epoll *ep = arg;
	bool ready;

	pno_lock(&ep->lock);
	ready = ep->ready_head;
	if (!ready)
		ep->kicked = false;
	pno_unlock(&ep->lock);
	return ready;
}

static void retire(struct doze *d)
{
	struct pno_epoll *ep = d->ep;

	pno_lock(&ep->lock);
	if (d->announced) {
		ep->sleepers--;
		ep->raw -= d->raw;
	}
	d->announced = false;
	pno_unlock(&ep->lock);
}

static void doze_left(struct pno_stay *stay)
{
	struct doze *d = (struct doze *)stay;

	if (d->alive)
		pno_channels_awake(d->ses, &d->armed);
	retire(d);
}

/* The longest sleep while there is no DPU and listeners wait for one. */
#define REVIVE_NANOS 1000000000ll

/* Its events, or -errno. 0 and again: look at the ready list; 0 without: the
 * time is over. */
static int sleep_announced(void *arg)
{
	struct doze *d = arg;
	struct pno_epoll *ep = d->ep;
	int n;

	announce(d);
	/* Who changes the channels from now on wakes us. */
	if (unlikely(ep->ses != d->ses) ||
	    (d->alive && !pno_channels_arm(d->ses, ep->channels, &d->armed, something_ready, ep))) {
		retire(d);
		return 0;
	}
	d->again = false;
	if (!d->alive && ep->nitems) {
		if (something_ready(ep)) {
			retire(d);
			d->again = true;
			return 0;
		}
		if (d->ns < 0 || d->ns > REVIVE_NANOS) {
			d->ns = REVIVE_NANOS;
			d->again = true;
		}
	}
	if (unlikely(d->alive && d->raw && (d->ns < 0 || d->ns > 1000000))) {
		d->ns = 1000000; /* no descriptor for a bed: it sleeps in short turns */
		d->woken = true;
	}
	atomic_store_explicit(&ep->since_kernel, 0, memory_order_relaxed);
	n = d->raw ? sleep_raw(ep, d->events, d->max, d->ns, d->sigmask, &d->woken)
		   : sleep_in_bed(ep, d->events, d->max, d->ns, d->sigmask, &d->woken);
	if (d->alive)
		pno_channels_awake(d->ses, &d->armed);
	retire(d);
	d->again |= d->woken;
	if (d->alive && d->woken)
		pno_count(wakeups);
	return n;
}

/* Sleeps in the kernel: its events, or -1 with errno. */
static int sleep_in_kernel(struct pno_epoll *ep, struct epoll_event *events, int max, int64_t ns,
			   const sigset_t *sigmask, bool *again)
{
	struct doze d = { .ep = ep, .ses = ep->ses, .events = events, .max = max, .ns = ns, .sigmask = sigmask,
			  .again = true };
	int n;

	d.alive = d.ses && !atomic_load_explicit(&d.ses->lost, memory_order_relaxed);
	*again = true;
	if (d.alive && pno_spin(d.ses, ep->channels, has_ready, ep))
		return 0;
	n = pno_stay(&d.stay, doze_left, sleep_announced, &d);
	*again = d.again;
	if (n >= 0)
		return n;
	errno = -n;
	return -1;
}

/*
 * The kernel's events when their turn has come. One that has the whole room
 * (of one event) waits for its next turn like the first.
 */
static int kernel_turn(struct pno_epoll *ep, struct epoll_event *events, int max)
{
	int room = (max + 1) / 2, n;

	if (likely(atomic_load_explicit(&ep->since_kernel, memory_order_relaxed) < KERNEL_EVERY - 1 || !ep->nkernel))
		return 0;
	n = kernel_look(ep, events, room);
	if (n > 0 && n < max)
		atomic_store_explicit(&ep->since_kernel, KERNEL_EVERY, memory_order_relaxed);
	return n > 0 ? n : 0;
}

static int gather_ours(struct pno_epoll *ep, struct epoll_event *events, int max)
{
	if (unlikely(!ep->chan))
		return 0;
	drain(ep);
	return collect(ep, events, max);
}

/* Offloaded events, and now and then the kernel's before them. */
static int gather(struct pno_epoll *ep, struct epoll_event *events, int max)
{
	int k = ep->chan ? kernel_turn(ep, events, max) : 0;
	int n = gather_ours(ep, events + k, max - k);

	if (n > 0 && !k && ep->nkernel) { /* several threads may lose a count, which only makes it later */
		unsigned calls = atomic_load_explicit(&ep->since_kernel, memory_order_relaxed);

		atomic_store_explicit(&ep->since_kernel, calls + 1, memory_order_relaxed);
	}
	return k && n < 0 ? k : n + k;
}

int pno_epoll_wait(struct pno_epoll *ep, struct epoll_event *events, int max, int64_t ns,
		   const sigset_t *sigmask)
{
	int64_t deadline = 0;
	bool again = false;
	int saved = errno, n, more;

	if (unlikely(max <= 0 || max > (int)(INT_MAX / sizeof *events)))
		return kernel_look(ep, events, max);
	if (likely(ep->chan))
		pno_thread_set_chan(ep->chan);
	else if (unlikely(ep->nitems))
		pno_session_get(); /* the child of a fork goes on with its parent's set */
	if (unlikely(atomic_load_explicit(&pno_listener_unsettled, memory_order_relaxed)))
		pno_listener_settle(false);
	for (;;) {
		if (unlikely(ep->ninner))
			pno_epoll_settle(ep);
		n = gather(ep, events, max);
		if (n > 0)
			break;
		if (unlikely(n < 0)) {
			errno = -n;
			return -1;
		}
		if (again)
			pno_count(wakeups_empty);
		if (ns == 0) {
			n = ep->nkernel || !ep->chan ? kernel_look(ep, events, max) : 0;
			break;
		}
		if (unlikely(ep->nitems && (!ep->ses || atomic_load_explicit(&ep->ses->lost, memory_order_relaxed))))
			pno_listener_revive();
		if (!deadline) {
			deadline = ns > 0 ? pno_now() + ns : PNO_NEVER;
			pno_interrupts_begin();
		}
		if (unlikely(atomic_load_explicit(&pno_listener_unsettled, memory_order_relaxed)))
			pno_listener_settle(true);
		n = sleep_in_kernel(ep, events, max, ns, sigmask, &again);
		if (n < 0)
			return n;
		if (n > 0) {
			more = n < max ? gather_ours(ep, events + n, max - n) : 0;
			n += more > 0 ? more : 0;
			break;
		}
		if (!again)
			break;
		if (ns > 0) {
			ns = deadline - pno_now();
			if (ns < 0)
				ns = 0;
		}
	}
	errno = saved;
	return n;
}
