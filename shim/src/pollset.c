/* SPDX-License-Identifier: Apache-2.0 */

/*
 * poll, ppoll, select, pselect with offloaded sockets in the set.
 *
 * The kernel's descriptors are copied to an array of their own, with one entry
 * to spare for the sleeper's interrupt set. Offloaded sockets are asked for
 * their masks. POLL… and EPOLL… bits have the same values.
 */
#include "pollset.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "epoll.h"
#include "fault.h"
#include "listener.h"
#include "memory.h"
#include "real.h"
#include "stats.h"
#include "stay.h"
#include "wait.h"

_Static_assert(POLLIN == (int)EPOLLIN && POLLOUT == (int)EPOLLOUT && POLLERR == (int)EPOLLERR &&
	       POLLHUP == (int)EPOLLHUP && POLLRDHUP == (int)EPOLLRDHUP, "poll and epoll bits");

#define ON_STACK 64

struct set {
	struct pno_stay stay;
	struct pollfd *fds;
	nfds_t n;
	nfds_t told; /* of them, those that know that they are waited for */
	int64_t ns;
	const sigset_t *sigmask;
	void *own; /* memory to be freed if the call is left */
	struct pollfd *kernel; /* n + 1 entries */
	nfds_t nkernel;
	nfds_t *index; /* of each kernel entry in fds */
	uint64_t channels;
	struct pno_session *ses;
	bool nested; /* instances are in it */
};

bool pno_poll_concerns(int fd)
{
	struct pno_obj *o = pno_fd_obj(fd);

	if (!o)
		return false;
	if (unlikely(o->kind == PNO_KIND_PIPE))
		pno_pipe_leave((struct pno_pipe *)o);
	if (o->kind == PNO_KIND_EPOLL)
		return ((struct pno_epoll *)o)->nitems > 0 || ((struct pno_epoll *)o)->ninner > 0;
	return o->kind == PNO_KIND_SOCK && ((struct pno_sock *)o)->state >= PNO_LISTENING;
}

/* The bits of an offloaded descriptor, now. */
static short now(int fd, short events)
{
	struct pno_obj *o = pno_fd_obj(fd);

	if (!o)
		return POLLNVAL;
	if (o->kind == PNO_KIND_EPOLL)
		return pno_epoll_readable((struct pno_epoll *)o) ? events & (POLLIN | POLLRDNORM) : 0;
	return atomic_load_explicit(&((struct pno_sock *)o)->mask, memory_order_acquire) &
	       (events | POLLERR | POLLHUP);
}

/* Splits the set; announces us as waiter on offloaded sockets. */
static void split(struct set *t)
{
	for (nfds_t i = 0; i < t->n; i++) {
		int fd = t->fds[i].fd;
		struct pno_epoll *ep = fd >= 0 ? pno_epoll_at(fd) : NULL;
		struct pno_sock *s;

		if (!pno_poll_concerns(fd) || ep) {
			t->index[t->nkernel] = i;
			t->kernel[t->nkernel++] = t->fds[i];
		}
		t->nested |= ep != NULL;
		if (ep || !pno_poll_concerns(fd) || !(s = pno_sock_lock(fd))) {
			pno_section_enter();
			if (ep)
				pno_epoll_attend(ep, true);
			t->told = i + 1;
			pno_section_leave();
			continue;
		}
		t->told = i + 1;
		if (s->qp) {
			s->waiters++;
			t->ses = s->ses;
			if (s->state == PNO_LISTENING && (t->fds[i].events & POLLIN))
				pno_listener_want(s, s->qp->chan, 0, true);
			t->channels |= pno_sock_channels(s);
		}
		pno_sock_unlock(s);
	}
}

static void leave(struct set *t)
{
	while (t->told) {
		int fd = t->fds[t->told - 1].fd;
		struct pno_epoll *ep = pno_epoll_at(fd);
		struct pno_sock *s = ep || !pno_poll_concerns(fd) ? NULL : pno_sock_peek(fd);

		pno_section_enter();
		t->told--;
		if (ep)
			pno_epoll_attend(ep, false);
		if (s && s->waiters)
			s->waiters--;
		pno_section_leave();
		if (s)
			pno_sock_unlock(s);
	}
	if (unlikely(atomic_load_explicit(&pno_listener_unsettled, memory_order_relaxed)))
		pno_listener_settle(false); /* a poller came while this waited */
}

static int scan(struct set *t)
{
	int n = 0;

	for (nfds_t i = 0; i < t->n; i++) {
		t->fds[i].revents = 0;
		if (pno_poll_concerns(t->fds[i].fd))
			t->fds[i].revents = now(t->fds[i].fd, t->fds[i].events);
		n += t->fds[i].revents != 0;
	}
	return n;
}

static bool any(void *arg)
{
	struct set *t = arg;

	for (nfds_t i = 0; i < t->n; i++)
		if (pno_poll_concerns(t->fds[i].fd) && now(t->fds[i].fd, t->fds[i].events))
			return true;
	return false;
}

/* Merges the kernel's answers; returns the number of descriptors with events. */
static int merge(struct set *t)
{
	int n = scan(t);

	for (nfds_t k = 0; k < t->nkernel; k++) {
		struct pollfd *f = &t->fds[t->index[k]];

		if (!t->kernel[k].revents)
			continue;
		n += !f->revents;
		f->revents |= t->kernel[k].revents;
	}
	return n;
}

static void drain(struct set *t)
{
	for (uint64_t m = t->channels; t->ses && m; m &= m - 1)
		pno_chan_drain(t->ses->chan[__builtin_ctzll(m)]);
}

/* The channels of instances; they may have come to more since the last look. */
static void settle(struct set *t)
{
	for (nfds_t i = 0; i < t->n; i++) {
		struct pno_epoll *ep = pno_epoll_at(t->fds[i].fd);

		if (!ep)
			continue;
		pno_epoll_settle(ep);
		if (ep->ses && (!t->ses || t->ses == ep->ses)) {
			t->ses = ep->ses;
			t->channels |= ep->channels;
		}
	}
}

/* After the drain: who has nothing ready any more says so to the kernel. */
static void douse(struct set *t)
{
	for (nfds_t i = 0; i < t->n; i++) {
		struct pno_epoll *ep = pno_epoll_at(t->fds[i].fd);

		if (!ep)
			continue;
		pno_epoll_settle(ep);
		pno_epoll_beacon(ep);
	}
}

static int look(struct set *t)
{
	if (t->nested)
		settle(t);
	drain(t);
	if (t->nested)
		douse(t);
	if (t->nkernel && real.poll(t->kernel, t->nkernel, 0) < 0)
		return -errno;
	return merge(t);
}

static int wait_set(struct set *t)
{
	const sigset_t *sigmask = t->sigmask;
	int64_t ns = t->ns, deadline = ns < 0 ? PNO_NEVER : pno_now() + ns;
	int rc;

	for (;;) {
		rc = look(t);
		if (!rc && ns == 0 && sigmask) {
			/* Nothing but, perhaps, a signal that the mask lets in. */
			struct timespec none = { 0 };

			rc = real.ppoll(t->kernel, t->nkernel, &none, sigmask) < 0 ? -errno : merge(t);
		}
		if (rc || ns == 0)
			return rc;
		for (nfds_t k = 0; k < t->nkernel; k++)
			t->kernel[k].revents = 0;
		if (t->ses && pno_session_now() == t->ses) {
			rc = pno_sleep(t->ses, t->channels, any, t, t->kernel, t->nkernel, sigmask, deadline);
		} else {
			struct timespec turn = { .tv_nsec = 100000000 };

			rc = pno_sleep_ppoll(t->kernel, t->nkernel, &turn, sigmask);
			rc = rc < 0 ? rc : 0;
			if (!rc && pno_now() >= deadline)
				rc = -ETIMEDOUT;
			pno_listener_revive();
			if (pno_session_now()) {
				/* What is back has another session, and channels. */
				leave(t);
				t->nkernel = t->channels = 0;
				t->ses = NULL;
				split(t);
			}
		}
		if (rc == -ETIMEDOUT) {
			rc = look(t);
			return rc;
		}
		if (rc < 0)
			return rc;
	}
}

static int wait_told(void *arg)
{
	struct set *t = arg;
	int rc;

	split(t);
	rc = wait_set(t);
	leave(t);
	return rc;
}

static void drop(struct set *t, struct pollfd *stack_fds)
{
	if (t->kernel == stack_fds)
		return;
	pno_free(t->kernel);
	pno_free(t->index);
}

static void poll_left(struct pno_stay *stay)
{
	struct set *t = (struct set *)stay;

	leave(t);
	if (t->n > ON_STACK)
		drop(t, NULL);
	pno_free(t->own);
}

int pno_poll(struct pollfd *fds, nfds_t n, int64_t ns, const sigset_t *sigmask, void *own)
{
	struct pollfd stack_fds[ON_STACK + 1];
	nfds_t stack_index[ON_STACK + 1];
	struct set t = { .fds = fds, .n = n, .kernel = stack_fds, .index = stack_index,
			 .ns = ns, .sigmask = sigmask, .own = own };
	int rc;

	if (n > ON_STACK) {
		t.kernel = pno_alloc((n + 1) * sizeof *t.kernel);
		t.index = pno_alloc((n + 1) * sizeof *t.index);
		if (!t.kernel || !t.index) {
			pno_free(t.kernel);
			pno_free(t.index);
			return -ENOMEM;
		}
	}
	if (!pno_writable(fds, n * sizeof *fds)) {
		rc = -EFAULT;
		goto out;
	}
	pno_interrupts_begin();
	rc = pno_stay(&t.stay, poll_left, wait_told, &t);
out:
	drop(&t, stack_fds);
	return rc;
}
