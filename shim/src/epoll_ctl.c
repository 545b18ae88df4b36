/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Registrations: epoll_ctl, and what becomes of them when a socket moves
 * between kernel and DPU, changes its home, or is closed.
 *
 * Locks: the socket's, then the instance's. Channels are opened before either
 * is taken, because that waits for hostd.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>

#include "epoll.h"
#include "fault.h"
#include "listener.h"
#include "log.h"
#include "memory.h"
#include "quiet.h"
#include "real.h"
#include "stats.h"

static pno_lock_t all_lock; /* a leaf */
static struct pno_epoll_link {
	struct pno_epoll_link *next;
	struct pno_epoll ep;
} *all, *spare;

int pno_epoll_new(int fd)
{
	struct pno_epoll_link *l;

	if (fd < 0)
		return fd;
	pno_lock(&all_lock);
	l = spare;
	if (l)
		spare = l->next;
	else
		l = calloc(1, sizeof *l);
	if (l) {
		l->next = all;
		all = l;
	}
	pno_unlock(&all_lock);
	if (!l) /* offloaded sockets cannot be added: they will say ENOMEM */
		return fd;
	l->ep.kind = PNO_KIND_EPOLL;
	l->ep.fd = fd;
	l->ep.nfds = 1;
	if (!pno_fd_set(fd, (struct pno_obj *)&l->ep))
		pno_log_once("epoll descriptor %d is beyond the descriptor table", fd);
	return fd;
}

/* Puts a descriptor into one of our sets. */
static bool put_in(int set, int fd, uint32_t events, void *data)
{
	struct epoll_event ev = { .events = events, .data.ptr = data };

	if (real.epoll_ctl(set, EPOLL_CTL_ADD, fd, &ev) == 0 || errno == EEXIST)
		return true;
	pno_log_once("epoll set refuses a descriptor: %s", strerror(errno));
	return false;
}

/* Makes the set that the instance sleeps on. Epoll locked. */
static void make_bed(struct pno_epoll *ep)
{
	int bed = ep->bed ? -1 : pno_fd_own(real.epoll_create1(EPOLL_CLOEXEC));

	if (bed < 0)
		return;
	if (put_in(bed, ep->fd, EPOLLIN, NULL))
		ep->bed = bed;
	else
		pno_fd_disown(bed);
}

/* Starts and ends listening to a channel's interrupt. Epoll locked. */
static void hear(struct pno_epoll *ep, struct pno_chan *c)
{
	if (ep->channels >> c->index & 1)
		return;
	if (ep->bed)
		put_in(ep->bed, c->irq, EPOLLIN | EPOLLET, &pno_epoll_ours);
	ep->channels |= 1ull << c->index;
	/* Nor do those that it is in hear it. */
	if (unlikely(ep->beacon))
		pno_epoll_ring(ep);
	/* Who sleeps in it has not armed this channel. */
	if (ep->sleepers && ep->chan != c)
		pno_chan_kick(ep->chan);
}

static void ignore(struct pno_epoll *ep, struct pno_chan *c)
{
	if (c == ep->chan || !(ep->channels >> c->index & 1))
		return;
	ep->channels &= ~(1ull << c->index);
	if (ep->bed)
		real.epoll_ctl(ep->bed, EPOLL_CTL_DEL, c->irq, NULL);
}

/* Threads sleep on the kernel's set, which none of our interrupts reaches: a
 * descriptor that is always ready stays in it until all are up. */
static void wake_raw(struct pno_epoll *ep)
{
	int bell = pno_fd_own(eventfd(1, EFD_CLOEXEC));

	if (bell < 0)
		return;
	put_in(ep->fd, bell, EPOLLIN, &pno_epoll_ours);
	for (int i = 0; i < 2000 && __atomic_load_n(&ep->raw, __ATOMIC_ACQUIRE); i++)
		quiet_nap(50000);
	real.epoll_ctl(ep->fd, EPOLL_CTL_DEL, bell, NULL);
	pno_fd_disown(bell);
}

/* Counts an item for its socket's home channel; NULL: for none. Epoll locked. */
static void at_home(struct pno_item *it, struct pno_chan *c)
{
	struct pno_epoll *ep = it->ep;
	int former = it->home;

	if (c && former == c->index)
		return;
	it->home = c ? (int)c->index : -1;
	if (c) {
		ep->homes[c->index]++;
		hear(ep, c);
	}
	if (former >= 0 && --ep->homes[former] == 0 && ep->ses)
		ignore(ep, ep->ses->chan[former]);
}

/* Gives the instance its channel in this session. */
static void adopt(struct pno_epoll *ep, struct pno_session *ses, struct pno_chan *c)
{
	bool wake;

	pno_lock(&ep->lock);
	if (ep->ses != ses) {
		for (struct pno_item *it = ep->items; it; it = it->in_ep)
			it->home = -1;
		memset(ep->homes, 0, sizeof ep->homes);
		ep->channels = ep->inner_channels = 0;
		ep->ses = ses;
		ep->chan = c;
		make_bed(ep);
		hear(ep, c);
		if (ep->sleepers > ep->raw)
			pno_chan_kick(c); /* they sleep in bed, and have not armed it */
	}
	wake = ep->raw;
	pno_unlock(&ep->lock);
	if (unlikely(wake))
		wake_raw(ep);
}

void pno_epoll_hear_also(struct pno_epoll *ep, const struct pno_epoll *inner)
{
	struct pno_session *ses = inner->ses;
	uint64_t m;

	if (unlikely(!ep->bed)) {
		pno_lock(&ep->lock);
		make_bed(ep);
		pno_unlock(&ep->lock);
	}
	if (!ses || ses != pno_session_now())
		return;
	if (ep->ses != ses)
		adopt(ep, ses, pno_chan_open(ses));
	if (likely(!(inner->channels & ~ep->inner_channels)))
		return;
	pno_lock(&ep->lock);
	m = ep->ses == ses ? inner->channels & ~ep->inner_channels : 0;
	for (; m; m &= m - 1) {
		unsigned i = __builtin_ctzll(m);

		ep->inner_channels |= 1ull << i;
		ep->homes[i]++; /* for good: to hear too much costs little */
		hear(ep, ses->chan[i]);
	}
	pno_unlock(&ep->lock);
}

static struct pno_item *find(struct pno_sock *s, struct pno_epoll *ep, int fd)
{
	struct pno_item *it = s->items;

	while (it && (it->ep != ep || it->fd != fd))
		it = it->in_sock;
	return it;
}

static struct pno_item *add(struct pno_sock *s, struct pno_epoll *ep, int fd)
{
	struct pno_item *it = s->first_item.ep ? pno_calloc(1, sizeof *it) : &s->first_item;

	if (!it)
		return NULL;
	it->sock = s;
	it->fd = fd;
	it->home = -1;
	it->in_sock = s->items;
	s->items = it;
	pno_lock(&ep->lock);
	it->ep = ep;
	it->in_ep = ep->items;
	it->in_ep_link = &ep->items;
	if (it->in_ep)
		it->in_ep->in_ep_link = &it->in_ep;
	ep->items = it;
	pno_unlock(&ep->lock);
	return it;
}

static void want(struct pno_item *it, bool on)
{
	struct pno_sock *s = it->sock;

	if (s->state == PNO_LISTENING && it->ep->chan)
		pno_listener_want(s, it->ep->chan, on ? 1 : -1, false);
}

void pno_epoll_remove(struct pno_item *it)
{
	struct pno_sock *s = it->sock;
	struct pno_epoll *ep = it->ep;
	struct pno_item **p;

	if (!it->in_kernel && (it->events & EPOLLIN))
		want(it, false);
	for (p = &s->items; *p != it; p = &(*p)->in_sock)
		;
	*p = it->in_sock;
	pno_lock(&ep->lock);
	if (it->queued)
		pno_epoll_unready(ep, it);
	at_home(it, NULL);
	*it->in_ep_link = it->in_ep;
	if (it->in_ep)
		it->in_ep->in_ep_link = it->in_ep_link;
	if (it->in_kernel)
		ep->nkernel -= ep->nkernel > 0;
	else
		ep->nitems--;
	pno_unlock(&ep->lock);
	if (it == &s->first_item)
		memset(it, 0, sizeof *it);
	else
		pno_free(it);
}

/* Sets what is wanted; reports what is there already. */
static void set(struct pno_item *it, const struct epoll_event *e)
{
	struct pno_sock *s = it->sock;
	struct pno_epoll *ep = it->ep;
	bool wanted = it->events & EPOLLIN, now;

	pno_lock(&ep->lock);
	it->events = e->events | EPOLLERR | EPOLLHUP;
	it->data = e->data.u64;
	pno_unlock(&ep->lock);
	now = it->events & EPOLLIN;
	if (now != wanted)
		want(it, now);
	if (atomic_load_explicit(&s->mask, memory_order_relaxed) & it->events)
		pno_epoll_push(it);
}

/* The kernel's set knows this socket; we only keep book. Socket locked. */
static int ctl_in_kernel(struct pno_sock *s, struct pno_epoll *ep, int op, int fd, struct epoll_event *e)
{
	struct pno_item *it = find(s, ep, fd);

	if (real.epoll_ctl(ep->fd, op, fd, e) < 0)
		return errno;
	if (op == EPOLL_CTL_DEL) {
		if (it)
			pno_epoll_remove(it);
		return 0;
	}
	if (!it) {
		it = add(s, ep, fd);
		if (!it)
			return ENOMEM;
		it->in_kernel = true;
		ep->nkernel++;
	}
	it->events = e->events;
	it->data = e->data.u64;
	return 0;
}

/* EPOLLEXCLUSIVE is said when a socket is added, with few other flags, and
 * cannot be changed. */
static bool exclusive_ok(const struct pno_item *it, int op, uint32_t events)
{
	const uint32_t with = EPOLLIN | EPOLLOUT | EPOLLERR | EPOLLHUP | EPOLLWAKEUP | EPOLLET | EPOLLEXCLUSIVE;

	if (op == EPOLL_CTL_MOD && it && (it->events & EPOLLEXCLUSIVE))
		return false;
	return !(events & EPOLLEXCLUSIVE) || (op == EPOLL_CTL_ADD && !(events & ~with));
}

static int ctl_offloaded(struct pno_sock *s, struct pno_epoll *ep, int op, int fd, struct epoll_event *e)
{
	struct pno_item *it = find(s, ep, fd);

	if (op != EPOLL_CTL_DEL && !exclusive_ok(it, op, e->events))
		return EINVAL;
	switch (op) {
	case EPOLL_CTL_ADD:
		if (it)
			return EEXIST;
		it = add(s, ep, fd);
		if (!it)
			return ENOMEM;
		ep->nitems++;
		/* Two claims under way in two rings might be served in any order:
		 * an instance hears a socket at its home, wherever that is. */
		if (s->state != PNO_LISTENING && s->qp && s->qp->chan != ep->chan && !s->claiming)
			pno_sock_claim(s, ep->chan);
		else if (s->qp)
			pno_epoll_follow(s);
		break;
	case EPOLL_CTL_MOD:
		if (!it)
			return ENOENT;
		break;
	case EPOLL_CTL_DEL:
		if (!it)
			return ENOENT;
		pno_epoll_remove(it);
		return 0;
	default:
		return EINVAL;
	}
	set(it, e);
	if (s->state == PNO_LISTENING && (e->events & EPOLLET) && (e->events & EPOLLIN) && ep->chan)
		pno_listener_gather(s, ep->chan);
	return 0;
}

/* A descriptor that the kernel alone knows. */
static int ctl_foreign(struct pno_epoll *ep, int op, int fd, struct epoll_event *e)
{
	struct pno_obj *o = pno_fd_obj(fd);
	int rc;

	if (o && o->kind == PNO_KIND_OWN) {
		errno = EBADF;
		return -1;
	}
	rc = real.epoll_ctl(ep->fd, op, fd, e);
	if (rc == 0 && unlikely(o && o->kind == PNO_KIND_EPOLL)) {
		if (op == EPOLL_CTL_ADD)
			pno_epoll_nest(ep, (struct pno_epoll *)o);
		else if (op == EPOLL_CTL_DEL)
			pno_epoll_unnest(ep, (struct pno_epoll *)o, false);
	}
	if (rc == 0 && op != EPOLL_CTL_MOD) {
		pno_lock(&ep->lock);
		ep->nkernel += op == EPOLL_CTL_ADD ? 1 : ep->nkernel ? -1 : 0;
		pno_unlock(&ep->lock);
	}
	return rc;
}

/* Whether the shim has this registration: of what is on the DPU, or was. */
static bool served_here(struct pno_sock *s, struct pno_epoll *ep, int fd)
{
	const struct pno_item *it;

	if (likely(s->state >= PNO_LISTENING))
		return true;
	it = find(s, ep, fd);
	return it && !it->in_kernel;
}

int pno_epoll_ctl(struct pno_epoll *ep, int op, int fd, struct epoll_event *theirs)
{
	struct epoll_event event = { 0 }, *e = theirs;
	struct pno_sock *s;
	bool here;
	int err;

	for (;;) {
		struct pno_session *ses;

		s = op == EPOLL_CTL_DEL ? pno_sock_peek(fd) : pno_sock_lock(fd);
		if (!s)
			return ctl_foreign(ep, op, fd, e);
		ses = s->ses;
		if (s->state < PNO_LISTENING || op == EPOLL_CTL_DEL || !ses || ep->ses == ses)
			break;
		pno_sock_unlock(s);
		adopt(ep, ses, pno_chan_open(ses));
	}
	here = served_here(s, ep, fd);
	if (op != EPOLL_CTL_DEL && here)
		e = &event;
	if (e == &event && !pno_copy(e, theirs, sizeof *e))
		err = EFAULT;
	else if (!here)
		err = ctl_in_kernel(s, ep, op, fd, e);
	else
		err = ctl_offloaded(s, ep, op, fd, e);
	pno_sock_unlock(s);
	if (!err)
		return 0;
	errno = err;
	return -1;
}

void pno_epoll_convert(struct pno_sock *s)
{
	for (struct pno_item *it = s->items; it; it = it->in_sock) {
		struct pno_epoll *ep = it->ep;

		if (ep->ses != s->ses)
			adopt(ep, s->ses, s->qp->chan);
		if (it->in_kernel) {
			real.epoll_ctl(ep->fd, EPOLL_CTL_DEL, it->fd, NULL);
			it->in_kernel = false;
			pno_lock(&ep->lock);
			ep->nkernel -= ep->nkernel > 0;
			ep->nitems++;
			pno_unlock(&ep->lock);
			it->events |= EPOLLERR | EPOLLHUP;
		}
		if (it->events & EPOLLIN)
			want(it, true);
	}
	pno_epoll_follow(s);
}

void pno_epoll_revert(struct pno_sock *s)
{
	for (struct pno_item *it = s->items; it; it = it->in_sock) {
		struct epoll_event e = { .events = it->events, .data.u64 = it->data };
		struct pno_epoll *ep = it->ep;

		if (it->in_kernel)
			continue;
		pno_lock(&ep->lock);
		if (it->queued)
			pno_epoll_unready(ep, it);
		at_home(it, NULL);
		ep->nitems--;
		ep->nkernel++;
		it->in_kernel = true;
		pno_unlock(&ep->lock);
		if (real.epoll_ctl(ep->fd, EPOLL_CTL_ADD, it->fd, &e) < 0)
			pno_log_once("the kernel's epoll set refuses a socket: %s", strerror(errno));
	}
}

void pno_epoll_forget(struct pno_sock *s)
{
	while (s->items) {
		struct pno_epoll *ep = s->items->ep;

		pno_epoll_remove(s->items);
		pno_lock(&ep->lock);
		ep->nkernel++; /* it is still in the kernel's set */
		pno_unlock(&ep->lock);
	}
}

void pno_epoll_follow(struct pno_sock *s)
{
	for (struct pno_item *it = s->items; it; it = it->in_sock) {
		pno_lock(&it->ep->lock);
		if (it->ep->ses == s->ses && !it->in_kernel && s->state != PNO_LISTENING)
			at_home(it, s->qp->chan);
		pno_unlock(&it->ep->lock);
	}
}

void pno_epoll_free(struct pno_epoll *ep)
{
	struct pno_epoll_link *l = (void *)((char *)ep - offsetof(struct pno_epoll_link, ep)), **p;

	for (;;) {
		struct pno_item *it;
		struct pno_sock *s;

		pno_lock(&ep->lock);
		it = ep->items;
		s = it ? it->sock : NULL;
		pno_unlock(&ep->lock);
		if (!it)
			break;
		pno_lock(&s->lock);
		for (it = s->items; it && it->ep != ep; it = it->in_sock)
			;
		if (it)
			pno_epoll_remove(it);
		pno_unlock(&s->lock);
	}
	if (ep->bed)
		pno_fd_disown(ep->bed);
	if (ep->beacon)
		pno_fd_disown(ep->beacon);
	if (ep->chan)
		pno_chan_close(ep->chan);
	pno_lock(&all_lock);
	for (struct pno_epoll_link *o = all; o; o = o->next)
		pno_epoll_unnest(&o->ep, ep, true);
	free(ep->inner);
	for (p = &all; *p != l; p = &(*p)->next)
		;
	*p = l->next;
	memset(&l->ep, 0, sizeof l->ep);
	l->next = spare;
	spare = l;
	pno_unlock(&all_lock);
}

void pno_epoll_adopted(struct pno_sock *s)
{
	for (struct pno_item *it = s->items; it; it = it->in_sock) {
		if (it->in_kernel)
			continue;
		if (it->ep->ses != s->ses)
			adopt(it->ep, s->ses, s->ses->chan[0]);
		if (it->events & EPOLLIN)
			want(it, true);
		if (s->away && !s->claiming)
			pno_sock_claim(s, it->ep->chan);
	}
}

void pno_epoll_child(void)
{
	for (struct pno_epoll_link *l = all; l; l = l->next) {
		l->ep.ses = NULL;
		l->ep.chan = NULL;
		l->ep.channels = l->ep.inner_channels = 0;
		memset(l->ep.homes, 0, sizeof l->ep.homes);
		for (struct pno_item *it = l->ep.items; it; it = it->in_ep)
			it->home = -1;
		l->ep.sleepers = l->ep.raw = 0;
		l->ep.bed = l->ep.beacon = 0; /* closed, as all of the shim's */
		atomic_store(&l->ep.lock.held, 0);
	}
	atomic_store(&all_lock.held, 0);
}
