/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Entry points: readiness. epoll instances are always ours to answer (they
 * cost little more than the kernel's until an offloaded socket is added);
 * poll and select only when such a socket is in their set.
 */
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "epoll.h"
#include "fault.h"
#include "memory.h"
#include "pollset.h"
#include "real.h"
#include "stats.h"
#include "wait.h"

#define ORDINARY 256 /* descriptors; more are worth a look at the limit */

static int64_t ms_to_ns(int ms)
{
	return ms < 0 ? -1 : ms * 1000000ll;
}

/* -2: not a time; -3: not there. */
static int64_t ts_to_ns(const struct timespec *t)
{
	if (!t)
		return -1;
	if (!pno_readable(t, sizeof *t))
		return -3;
	if (t->tv_sec < 0 || t->tv_nsec < 0 || t->tv_nsec > 999999999)
		return -2;
	return t->tv_sec > INT64_MAX / 2000000000 ? -1 : t->tv_sec * 1000000000ll + t->tv_nsec;
}

static int give(int rc)
{
	if (rc >= 0)
		return rc;
	errno = -rc;
	return -1;
}

PNO_EXPORT int epoll_create(int size)
{
	PNO_ENTER();
	return pno_epoll_new(real.epoll_create(size));
}

PNO_EXPORT int epoll_create1(int flags)
{
	PNO_ENTER();
	return pno_epoll_new(real.epoll_create1(flags));
}

PNO_EXPORT int epoll_ctl(int epfd, int op, int fd, struct epoll_event *event)
{
	struct pno_epoll *ep;

	PNO_ENTER();
	ep = pno_epoll_at(epfd);
	if (likely(ep))
		return pno_epoll_ctl(ep, op, fd, event);
	pno_pipe_leave_fd(fd);
	return real.epoll_ctl(epfd, op, fd, event);
}

PNO_EXPORT int epoll_wait(int epfd, struct epoll_event *events, int max, int timeout)
{
	struct pno_epoll *ep;

	PNO_ENTER_POINT();
	ep = pno_epoll_at(epfd);
	if (unlikely(!ep))
		return real.epoll_wait(epfd, events, max, timeout);
	return pno_epoll_wait(ep, events, max, ms_to_ns(timeout), NULL);
}

PNO_EXPORT int epoll_pwait(int epfd, struct epoll_event *events, int max, int timeout, const sigset_t *mask)
{
	struct pno_epoll *ep;

	PNO_ENTER_POINT();
	ep = pno_epoll_at(epfd);
	if (!ep)
		return real.epoll_pwait(epfd, events, max, timeout, mask);
	return pno_epoll_wait(ep, events, max, ms_to_ns(timeout), mask);
}

PNO_EXPORT int epoll_pwait2(int epfd, struct epoll_event *events, int max, const struct timespec *timeout,
			    const sigset_t *mask)
{
	struct pno_epoll *ep;
	int64_t ns;

	PNO_ENTER_POINT();
	ep = pno_epoll_at(epfd);
	if (!ep)
		return real.epoll_pwait2(epfd, events, max, timeout, mask);
	if ((ns = ts_to_ns(timeout)) < -1)
		return give(ns == -2 ? -EINVAL : -EFAULT);
	return pno_epoll_wait(ep, events, max, ns, mask);
}

/* What cannot be, the kernel refuses best. */
static bool concerns(const struct pollfd *fds, nfds_t n)
{
	struct rlimit lim;

	if (unlikely(n > ORDINARY) && (n > INT_MAX || (getrlimit(RLIMIT_NOFILE, &lim) == 0 && n > lim.rlim_cur)))
		return false;
	if (unlikely(!pno_readable(fds, n * sizeof *fds)))
		return false;
	for (nfds_t i = 0; i < n; i++)
		if (pno_poll_concerns(fds[i].fd))
			return true;
	return false;
}

PNO_EXPORT int poll(struct pollfd *fds, nfds_t n, int timeout)
{
	PNO_ENTER_POINT();
	if (likely(!concerns(fds, n)))
		return real.poll(fds, n, timeout);
	return give(pno_poll(fds, n, ms_to_ns(timeout), NULL, NULL));
}

PNO_EXPORT int ppoll(struct pollfd *fds, nfds_t n, const struct timespec *timeout, const sigset_t *mask)
{
	int64_t ns;

	PNO_ENTER_POINT();
	if (likely(!concerns(fds, n)))
		return real.ppoll(fds, n, timeout, mask);
	if ((ns = ts_to_ns(timeout)) < -1)
		return give(ns == -2 ? -EINVAL : -EFAULT);
	return give(pno_poll(fds, n, ns, mask, NULL));
}

PNO_EXPORT int __poll_chk(struct pollfd *fds, nfds_t n, int timeout, size_t have)
{
	if (unlikely(have / sizeof *fds < n))
		abort();
	return poll(fds, n, timeout);
}

PNO_EXPORT int __ppoll_chk(struct pollfd *fds, nfds_t n, const struct timespec *timeout, const sigset_t *mask,
			   size_t have)
{
	if (unlikely(have / sizeof *fds < n))
		abort();
	return ppoll(fds, n, timeout, mask);
}

/* Programs may use sets larger than FD_SETSIZE: bits, not macros. */
static bool has(const fd_set *set, int fd)
{
	return set && ((const unsigned long *)set)[fd / (8 * sizeof(long))] >> fd % (8 * sizeof(long)) & 1;
}

static void put(fd_set *set, int fd, bool on)
{
	unsigned long *word, bit;

	if (!set)
		return;
	word = &((unsigned long *)set)[fd / (8 * sizeof(long))];
	bit = 1ul << fd % (8 * sizeof(long));
	*word = on ? *word | bit : *word & ~bit;
}

static size_t set_size(int n)
{
	return (n + 8 * sizeof(long) - 1) / (8 * sizeof(long)) * sizeof(long);
}

static bool there(int n, const fd_set *set)
{
	return !set || pno_readable(set, set_size(n));
}

/*
 * select(getdtablesize(), …) is common, with sets of FD_SETSIZE: the kernel
 * looks no further than its table of descriptors goes, which the shim's own
 * ones, far up, have made larger. So n ends where the program's end.
 */
static int clamp(int n)
{
	int top = FD_SETSIZE;
	struct dirent *e;
	DIR *d;

	if (likely(n <= FD_SETSIZE) || !(d = opendir("/proc/self/fd")))
		return n;
	while ((e = readdir(d))) {
		int fd = atoi(e->d_name);
		struct pno_obj *o = pno_fd_obj(fd);

		if (fd >= top && fd < n && fd != dirfd(d) && (!o || o->kind != PNO_KIND_OWN))
			top = fd + 1;
	}
	closedir(d);
	return top;
}

static bool select_concerns(int n, const fd_set *r, const fd_set *w, const fd_set *e)
{
	if (n <= 0 || !there(n, r) || !there(n, w) || !there(n, e))
		return false;
	for (int fd = 0; fd < n; fd++)
		if ((has(r, fd) || has(w, fd) || has(e, fd)) && pno_poll_concerns(fd))
			return true;
	return false;
}

#define READABLE (POLLIN | POLLRDNORM | POLLHUP | POLLERR)
#define WRITABLE (POLLOUT | POLLWRNORM | POLLERR)

/* select by poll: the same readiness, other clothes. */
static int select_by_poll(int n, fd_set *r, fd_set *w, fd_set *e, int64_t ns, const sigset_t *mask)
{
	struct pollfd *fds;
	int rc, count = 0;
	nfds_t k = 0;

	if ((r && !pno_writable(r, set_size(n))) || (w && !pno_writable(w, set_size(n))) ||
	    (e && !pno_writable(e, set_size(n))))
		return -EFAULT;
	fds = pno_calloc(n, sizeof *fds);
	if (!fds)
		return -ENOMEM;
	for (int fd = 0; fd < n; fd++) {
		short want = (has(r, fd) ? POLLIN | POLLRDNORM : 0) |
			     (has(w, fd) ? POLLOUT | POLLWRNORM : 0) | (has(e, fd) ? POLLPRI : 0);

		if (want)
			fds[k++] = (struct pollfd){ .fd = fd, .events = want };
	}
	rc = pno_poll(fds, k, ns, mask, fds);
	for (nfds_t i = 0; rc >= 0 && i < k; i++)
		if (fds[i].revents & POLLNVAL)
			rc = -EBADF;
	for (nfds_t i = 0; rc >= 0 && i < k; i++) {
		int fd = fds[i].fd;
		bool in = has(r, fd) && (fds[i].revents & READABLE);
		bool out = has(w, fd) && (fds[i].revents & WRITABLE);
		bool pri = has(e, fd) && (fds[i].revents & POLLPRI);

		put(r, fd, in);
		put(w, fd, out);
		put(e, fd, pri);
		count += in + out + pri;
	}
	pno_free(fds);
	return rc < 0 ? rc : count;
}

PNO_EXPORT int select(int n, fd_set *r, fd_set *w, fd_set *e, struct timeval *timeout)
{
	int64_t ns = -1, end, left;
	int rc;

	PNO_ENTER_POINT();
	n = clamp(n);
	if (likely(!select_concerns(n, r, w, e)))
		return real.select(n, r, w, e, timeout);
	if (timeout) {
		if (!pno_readable(timeout, sizeof *timeout))
			return give(-EFAULT);
		if (timeout->tv_sec < 0 || timeout->tv_usec < 0)
			return give(-EINVAL);
		ns = timeout->tv_sec > INT64_MAX / 2000000000 ? INT64_MAX / 4
			: timeout->tv_sec * 1000000000ll + timeout->tv_usec * 1000ll;
	}
	end = pno_now() + ns;
	rc = select_by_poll(n, r, w, e, ns, NULL);
	if (timeout) {
		/* Linux tells what was left. */
		left = end - pno_now();
		left = left > 0 ? left : 0;
		timeout->tv_sec = left / 1000000000;
		timeout->tv_usec = left % 1000000000 / 1000;
	}
	return give(rc);
}

PNO_EXPORT int pselect(int n, fd_set *r, fd_set *w, fd_set *e, const struct timespec *timeout, const sigset_t *mask)
{
	int64_t ns;

	PNO_ENTER_POINT();
	n = clamp(n);
	if (likely(!select_concerns(n, r, w, e)))
		return real.pselect(n, r, w, e, timeout, mask);
	if ((ns = ts_to_ns(timeout)) < -1)
		return give(ns == -2 ? -EINVAL : -EFAULT);
	return give(select_by_poll(n, r, w, e, ns, mask));
}
