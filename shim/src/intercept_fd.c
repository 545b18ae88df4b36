/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Entry points: descriptors as such. Copies of a descriptor name the same
 * object; the object ends with the last of them. The shim's own descriptors
 * do not exist as far as the program can tell.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/close_range.h>
#include <linux/sockios.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/pidfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "epoll.h"
#include "fault.h"
#include "filestream.h"
#include "listener.h"
#include "log.h"
#include "real.h"
#include "relay.h"
#include "stats.h"
#include "wait.h"
#include "udp.h"

static int bad(int err)
{
	errno = err;
	return -1;
}

static bool own(int fd)
{
	struct pno_obj *o = pno_fd_obj(fd);

	return o && o->kind == PNO_KIND_OWN;
}

static void close_epoll(struct pno_epoll *ep, int fd)
{
	pno_fd_set(fd, NULL);
	if (--ep->nfds == 0) {
		pno_epoll_free(ep);
		return;
	}
	if (ep->fd != fd)
		return;
	for (unsigned i = 0; i < atomic_load(&pno_fd_top); i++) {
		if (pno_fd_obj(i) == (struct pno_obj *)ep) {
			ep->fd = i;
			return;
		}
	}
}

/* Our half of closing a descriptor. */
static void forget(int fd)
{
	struct pno_epoll *ep;
	struct pno_sock *s;

	if (likely(!pno_fd_obj(fd)))
		return;
	s = pno_sock_peek(fd);
	if (s && unlikely(s->hold) && atomic_load_explicit(&s->lent, memory_order_relaxed)) {
		/* What a pipe has of it outlives it. */
		pno_relay_fetch(s);
		pno_sock_unlock(s);
		s = pno_sock_peek(fd);
	}
	if (s)
		pno_sock_close_fd(s, fd);
	else if ((ep = pno_epoll_at(fd)))
		close_epoll(ep, fd);
	pno_stdio_follow(fd);
}

/* Our half of copying one. */
static int also(int from, int to)
{
	struct pno_epoll *ep;
	struct pno_sock *s;

	if (to < 0 || likely(!pno_fd_obj(from)))
		return to;
	s = pno_sock_peek(from);
	if (s) {
		if (pno_fd_set(to, (struct pno_obj *)s))
			s->nfds++;
		pno_sock_unlock(s);
	} else if ((ep = pno_epoll_at(from))) {
		if (pno_fd_set(to, (struct pno_obj *)ep))
			ep->nfds++;
	}
	pno_stdio_follow(to);
	return to;
}

PNO_EXPORT int close(int fd)
{
	PNO_ENTER();
	if (unlikely(own(fd)))
		return bad(EBADF);
	forget(fd);
	return real.close(fd);
}

PNO_EXPORT int close_range(unsigned first, unsigned last, int flags)
{
	unsigned top = atomic_load(&pno_fd_top), from = first;

	PNO_ENTER();
	if (first > last)
		return bad(EINVAL);
	if (flags & CLOSE_RANGE_CLOEXEC)
		return real.close_range(first, last, flags);
	for (unsigned fd = first; fd < top && fd <= last; fd++) {
		if (!own(fd)) {
			forget(fd);
			continue;
		}
		if (fd > from && real.close_range(from, fd - 1, flags) < 0)
			return -1;
		from = fd + 1;
	}
	return from <= last ? real.close_range(from, last, flags) : 0;
}

PNO_EXPORT void closefrom(int low)
{
	close_range(low < 0 ? 0 : low, ~0u, 0);
}

PNO_EXPORT int dup(int fd)
{
	PNO_ENTER();
	return unlikely(own(fd)) ? bad(EBADF) : also(fd, real.dup(fd));
}

PNO_EXPORT int dup2(int from, int to)
{
	PNO_ENTER();
	if (unlikely(own(from) || own(to)))
		return bad(EBADF);
	if (from == to)
		return real.dup2(from, to);
	if (pno_fd_obj(to) && real.fcntl(from, F_GETFD) >= 0)
		forget(to);
	return also(from, real.dup2(from, to));
}

PNO_EXPORT int dup3(int from, int to, int flags)
{
	PNO_ENTER();
	if (unlikely(own(from) || own(to)))
		return bad(EBADF);
	if (from != to && pno_fd_obj(to) && real.fcntl(from, F_GETFD) >= 0)
		forget(to);
	return also(from, real.dup3(from, to, flags));
}

static int set_flags(struct pno_sock *s, int fd, long flags)
{
	int rc = 0;

	if (unlikely(flags & O_ASYNC) && s->state > PNO_BOUND)
		pno_count(calls_refused); /* taken, as by files that cannot: no signal comes */
	/* Accepted sockets share one kernel file: its flags are not theirs. */
	if (s->own_file)
		rc = real.fcntl(fd, F_SETFL, flags);
	if (rc == 0) {
		s->nonblock = flags & O_NONBLOCK;
		s->append = flags & O_APPEND;
	}
	return rc;
}

static int get_flags(const struct pno_sock *s, int fd)
{
	int rc = real.fcntl(fd, F_GETFL);

	if (rc >= 0 && !s->own_file)
		rc = (rc & ~(O_NONBLOCK | O_APPEND)) | (s->nonblock ? O_NONBLOCK : 0) | (s->append ? O_APPEND : 0);
	return rc;
}

static int do_fcntl(int fd, int cmd, void *arg)
{
	struct pno_sock *s;
	int rc;

	PNO_ENTER();
	if (likely(!pno_fd_obj(fd)))
		return real.fcntl(fd, cmd, arg);
	if (own(fd))
		return bad(EBADF);
	if (pno_fd_is_pipe(fd) && cmd != F_DUPFD && cmd != F_DUPFD_CLOEXEC)
		return pno_pipe_fcntl((struct pno_pipe *)pno_fd_obj(fd), fd, cmd, arg);
	if (cmd == F_DUPFD || cmd == F_DUPFD_CLOEXEC)
		return also(fd, real.fcntl(fd, cmd, arg));
	if ((cmd != F_GETFL && cmd != F_SETFL) || !(s = pno_sock_peek(fd)))
		return real.fcntl(fd, cmd, arg);
	rc = cmd == F_SETFL ? set_flags(s, fd, (long)arg) : get_flags(s, fd);
	pno_sock_unlock(s);
	return rc;
}

PNO_EXPORT int fcntl(int fd, int cmd, ...)
{
	va_list args;
	void *arg;

	va_start(args, cmd);
	arg = va_arg(args, void *);
	va_end(args);
	return do_fcntl(fd, cmd, arg);
}

PNO_EXPORT int fcntl64(int fd, int cmd, ...)
{
	va_list args;
	void *arg;

	va_start(args, cmd);
	arg = va_arg(args, void *);
	va_end(args);
	return do_fcntl(fd, cmd, arg);
}

PNO_EXPORT int pidfd_getfd(int pidfd, int target, unsigned flags)
{
	int fd;

	PNO_ENTER();
	fd = (int)real.syscall(SYS_pidfd_getfd, pidfd, target, flags);
	if (fd < 0 || pno_inherit_fetched(fd))
		return fd;
	close(fd);
	pno_count(calls_refused);
	pno_log_once("pidfd_getfd of a connection, or of a socket without name, is refused: send it by SCM_RIGHTS");
	return bad(EOPNOTSUPP);
}

static int answer(int *arg, uint64_t v)
{
	return pno_put32(arg, v < INT_MAX ? v : INT_MAX) ? 0 : bad(EFAULT);
}

/* 0, -1 with errno, or 1: the kernel's to answer. */
static int sock_ioctl(struct pno_sock *s, int fd, unsigned long request, int *arg)
{
	uint32_t on;
	uint64_t n;

	switch (request) {
	case FIONBIO:
		if (s->own_file && real.ioctl(fd, request, arg) < 0)
			return -1;
		if (!pno_get32(arg, &on))
			return bad(EFAULT);
		s->nonblock = on;
		return 0;
	case FIOASYNC:
		if (s->state <= PNO_BOUND)
			return 1;
		if (!pno_get32(arg, &on))
			return bad(EFAULT);
		if (!on)
			return 0;
		pno_count(calls_refused);
		return bad(ENOTTY); /* nobody would send the signal */
	case FIONREAD:
	case SIOCOUTQ:
		if (s->state <= PNO_BOUND)
			return 1;
		if (s->state == PNO_LISTENING)
			return s->listener->stopped ? answer(arg, 0) : bad(EINVAL);
		if (!pno_sock_look(s))
			return bad(EBADF);
		if (request == FIONREAD)
			return answer(arg, s->udp ? pno_udp_unread(s) : pno_sock_unread(s));
		if (s->udp)
			return answer(arg, pno_udp_unsent(s));
		return pno_sock_unsent(s, &n) ? bad(EBADF) : answer(arg, n);
	case SIOCATMARK:
		if (s->udp)
			return bad(ENOTTY);
		return s->udp ? bad(ENOTTY) : answer(arg, 0);
	}
	return 1;
}

PNO_EXPORT int ioctl(int fd, unsigned long request, ...)
{
	struct pno_sock *s;
	va_list args;
	void *arg;
	int rc;

	PNO_ENTER();
	va_start(args, request);
	arg = va_arg(args, void *);
	va_end(args);
	if (likely(!pno_fd_obj(fd)))
		return real.ioctl(fd, request, arg);
	if (own(fd))
		return bad(EBADF);
	s = request == FIONBIO || request == FIOASYNC ? pno_sock_peek(fd) : pno_sock_lock(fd);
	if (!s)
		return real.ioctl(fd, request, arg);
	rc = sock_ioctl(s, fd, request, arg);
	pno_sock_unlock(s);
	return rc > 0 ? real.ioctl(fd, request, arg) : rc;
}
