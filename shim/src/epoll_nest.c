/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Epoll instances within epoll instances.
 *
 * The kernel's sets are nested as the program asks, and the kernel says what
 * an outer one reports, edges, ONESHOT and all. What it cannot know is that an
 * inner one has offloaded sockets ready. So an inner instance has a beacon, an
 * eventfd in its kernel set, which every event rings. Who is about to ask a
 * kernel set that an instance is in first makes the beacon say what is true by
 * then (settle), for what was ready may have been read.
 *
 * The beacon is edge-triggered: who waits on the inner instance itself takes
 * its ring once, and never spins on that of another process that has the same
 * kernel set since a fork.
 *
 * An outer instance hears its inner ones' channels, since nobody else may be
 * looking at their rings, and always sleeps on its bed, for an event of the
 * kernel's set that is not true must not be taken out of it.
 *
 * Instances are never given back to malloc, and no two are locked at once.
 */
#include <poll.h>
#include <stdlib.h>
#include <sys/eventfd.h>

#include "epoll.h"
#include "quiet.h"
#include "real.h"

/* What the kernel allows. */
#define DEPTH 5

void pno_epoll_ring(struct pno_epoll *ep)
{
	uint64_t one = 1;

	if (ep->beacon)
		(void)!quiet_write(ep->beacon, &one, sizeof one);
}

static void make_beacon(struct pno_epoll *ep)
{
	struct epoll_event ev = { .events = EPOLLIN | EPOLLET, .data.ptr = &pno_epoll_ours };
	int fd = pno_fd_own(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));

	if (fd < 0)
		return;
	pno_lock(&ep->lock);
	if (!ep->beacon && real.epoll_ctl(ep->fd, EPOLL_CTL_ADD, fd, &ev) == 0) {
		ep->beacon = fd;
		fd = -1;
	}
	pno_unlock(&ep->lock);
	pno_fd_disown(fd);
}

void pno_epoll_beacon(struct pno_epoll *ep)
{
	struct pollfd p = { .fd = ep->fd, .events = POLLIN };
	uint64_t rings;
	bool ready;

	if (likely(!ep->beacon))
		return;
	pno_lock(&ep->lock);
	ready = pno_epoll_any(ep);
	if (!ready) /* with the lock: who pushes rings after it */
		(void)!quiet_read(ep->beacon, &rings, sizeof rings);
	pno_unlock(&ep->lock);
	if (ready && real.poll(&p, 1, 0) == 0)
		pno_epoll_ring(ep);
}

static struct pno_epoll *inner_at(struct pno_epoll *ep, unsigned i)
{
	struct pno_epoll *inner;

	pno_lock(&ep->lock);
	inner = i < ep->ninner ? ep->inner[i] : NULL;
	pno_unlock(&ep->lock);
	return inner;
}

static void settle(struct pno_epoll *ep, int depth)
{
	struct pno_epoll *inner;

	if (!ep->ninner || depth == DEPTH)
		return;
	for (unsigned i = 0; (inner = inner_at(ep, i)); i++) {
		settle(inner, depth + 1);
		if (!inner->beacon)
			make_beacon(inner);
		pno_epoll_hear_also(ep, inner);
		pno_epoll_beacon(inner);
	}
}

void pno_epoll_settle(struct pno_epoll *ep)
{
	settle(ep, 0);
}

void pno_epoll_nest(struct pno_epoll *ep, struct pno_epoll *inner)
{
	struct pno_epoll **more;

	pno_lock(&ep->lock);
	more = realloc(ep->inner, (ep->ninner + 1) * sizeof *more);
	if (more) {
		ep->inner = more;
		more[ep->ninner++] = inner;
	}
	pno_unlock(&ep->lock);
	make_beacon(inner);
}

void pno_epoll_unnest(struct pno_epoll *ep, const struct pno_epoll *inner, bool all)
{
	unsigned kept = 0;
	bool gone = false;

	if (likely(!ep->ninner))
		return;
	pno_lock(&ep->lock);
	for (unsigned i = 0; i < ep->ninner; i++) {
		if (ep->inner[i] == inner && (all || !gone))
			gone = true;
		else
			ep->inner[kept++] = ep->inner[i];
	}
	ep->ninner = kept;
	pno_unlock(&ep->lock);
}
