/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Entry points: everything that moves bytes. A descriptor that is not an
 * offloaded, connected socket costs one load more than without the shim.
 *
 * The __*_chk twins are what programs built with _FORTIFY_SOURCE call.
 */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "real.h"
#include "sock.h"
#include "stats.h"

/* An offloaded socket, locked. Fresh and merely bound ones answer as the
 * kernel's placeholder does. */
static inline struct pno_sock *io_sock(int fd)
{
	struct pno_sock *s = pno_sock_lock(fd);

	if (likely(!s) || likely(s->state > PNO_BOUND))
		return s;
	pno_sock_unlock(s);
	return NULL;
}

static inline ssize_t give(ssize_t rc)
{
	if (likely(rc >= 0))
		return rc;
	errno = -rc;
	return -1;
}

static inline bool iov_ok(struct pno_sock *s, long n)
{
	if (likely(n >= 0 && n <= IOV_MAX))
		return true;
	pno_sock_unlock(s);
	errno = EINVAL;
	return false;
}

PNO_EXPORT ssize_t read(int fd, void *buf, size_t len)
{
	struct iovec v = { buf, len };
	struct pno_sock *s;

	PNO_ENTER();
	s = io_sock(fd);
	return s ? give(pno_sock_recv(s, &v, 1, 0)) : real.read(fd, buf, len);
}

PNO_EXPORT ssize_t readv(int fd, const struct iovec *iov, int n)
{
	struct pno_sock *s;

	PNO_ENTER();
	s = io_sock(fd);
	if (!s)
		return real.readv(fd, iov, n);
	return iov_ok(s, n) ? give(pno_sock_recv(s, iov, n, 0)) : -1;
}

PNO_EXPORT ssize_t recv(int fd, void *buf, size_t len, int flags)
{
	struct iovec v = { buf, len };
	struct pno_sock *s;

	PNO_ENTER();
	s = io_sock(fd);
	return s ? give(pno_sock_recv(s, &v, 1, flags)) : real.recv(fd, buf, len, flags);
}

PNO_EXPORT ssize_t recvfrom(int fd, void *buf, size_t len, int flags, struct sockaddr *addr, socklen_t *alen)
{
	struct iovec v = { buf, len };
	struct pno_sock *s;

	PNO_ENTER();
	s = io_sock(fd);
	if (!s)
		return real.recvfrom(fd, buf, len, flags, addr, alen);
	if (addr && alen)
		*alen = 0; /* a stream names no sender */
	return give(pno_sock_recv(s, &v, 1, flags));
}

PNO_EXPORT ssize_t recvmsg(int fd, struct msghdr *m, int flags)
{
	struct pno_sock *s;
	ssize_t n;

	PNO_ENTER();
	s = io_sock(fd);
	if (!s) {
		n = real.recvmsg(fd, m, flags);
		if (n >= 0 && m->msg_controllen)
			pno_inherit_message(m);
		return n;
	}
	if (!iov_ok(s, m->msg_iovlen))
		return -1;
	n = pno_sock_recv(s, m->msg_iov, m->msg_iovlen, flags);
	if (n >= 0) {
		m->msg_namelen = 0;
		m->msg_controllen = 0;
		m->msg_flags = 0;
	}
	return give(n);
}

PNO_EXPORT int recvmmsg(int fd, struct mmsghdr *v, unsigned n, int flags, struct timespec *timeout)
{
	struct pno_sock *s;
	unsigned i;

	PNO_ENTER();
	s = io_sock(fd);
	if (!s)
		return real.recvmmsg(fd, v, n, flags, timeout);
	pno_sock_unlock(s);
	for (i = 0; i < n; i++) {
		ssize_t got = recvmsg(fd, &v[i].msg_hdr, (flags & ~MSG_WAITFORONE) | (i ? MSG_DONTWAIT : 0));

		if (got <= 0 && (got < 0 || i))
			break;
		v[i].msg_len = got;
		if (!got)
			return i + 1;
	}
	return i ? (int)i : -1;
}

PNO_EXPORT ssize_t write(int fd, const void *buf, size_t len)
{
	struct iovec v = { (void *)buf, len };
	struct pno_sock *s;

	PNO_ENTER();
	s = io_sock(fd);
	return s ? give(pno_sock_send(s, &v, 1, 0)) : real.write(fd, buf, len);
}

PNO_EXPORT ssize_t writev(int fd, const struct iovec *iov, int n)
{
	struct pno_sock *s;

	PNO_ENTER();
	s = io_sock(fd);
	if (!s)
		return real.writev(fd, iov, n);
	return iov_ok(s, n) ? give(pno_sock_send(s, iov, n, 0)) : -1;
}

PNO_EXPORT ssize_t send(int fd, const void *buf, size_t len, int flags)
{
	struct iovec v = { (void *)buf, len };
	struct pno_sock *s;

	PNO_ENTER();
	s = io_sock(fd);
	return s ? give(pno_sock_send(s, &v, 1, flags)) : real.send(fd, buf, len, flags);
}

PNO_EXPORT ssize_t sendto(int fd, const void *buf, size_t len, int flags, const struct sockaddr *addr, socklen_t alen)
{
	struct iovec v = { (void *)buf, len };
	struct pno_sock *s;

	PNO_ENTER();
	s = io_sock(fd);
	return s ? give(pno_sock_send(s, &v, 1, flags)) : real.sendto(fd, buf, len, flags, addr, alen);
}

PNO_EXPORT ssize_t sendmsg(int fd, const struct msghdr *m, int flags)
{
	struct pno_sock *s;

	PNO_ENTER();
	s = io_sock(fd);
	if (!s)
		return real.sendmsg(fd, m, flags);
	return iov_ok(s, m->msg_iovlen) ? give(pno_sock_send(s, m->msg_iov, m->msg_iovlen, flags)) : -1;
}

PNO_EXPORT int sendmmsg(int fd, struct mmsghdr *v, unsigned n, int flags)
{
	struct pno_sock *s;
	unsigned i;

	PNO_ENTER();
	s = io_sock(fd);
	if (!s)
		return real.sendmmsg(fd, v, n, flags);
	pno_sock_unlock(s);
	for (i = 0; i < n; i++) {
		ssize_t sent = sendmsg(fd, &v[i].msg_hdr, flags);

		if (sent < 0)
			break;
		v[i].msg_len = sent;
	}
	return i ? (int)i : -1;
}

/* The source may be an offloaded socket, which no file read can serve. */
static bool is_offloaded(int fd)
{
	struct pno_sock *s = io_sock(fd);

	if (s)
		pno_sock_unlock(s);
	return s;
}

PNO_EXPORT ssize_t sendfile(int out, int in, off_t *offset, size_t count)
{
	struct pno_sock *s;

	PNO_ENTER();
	if (unlikely(is_offloaded(in))) {
		pno_count(calls_refused);
		return give(-EINVAL);
	}
	s = io_sock(out);
	return s ? give(pno_sock_sendfile(s, in, offset, count)) : real.sendfile(out, in, offset, count);
}

_Static_assert(sizeof(off_t) == 8, "sendfile and sendfile64 are the same");

PNO_EXPORT ssize_t sendfile64(int out, int in, off64_t *offset, size_t count)
{
	return sendfile(out, in, (off_t *)offset, count);
}

static inline void fortify(size_t want, size_t have)
{
	if (unlikely(want > have))
		abort(); /* what __chk_fail does, without its message */
}

PNO_EXPORT ssize_t __read_chk(int fd, void *buf, size_t len, size_t have)
{
	fortify(len, have);
	return read(fd, buf, len);
}

PNO_EXPORT ssize_t __recv_chk(int fd, void *buf, size_t len, size_t have, int flags)
{
	fortify(len, have);
	return recv(fd, buf, len, flags);
}

PNO_EXPORT ssize_t __recvfrom_chk(int fd, void *buf, size_t len, size_t have, int flags,
				  struct sockaddr *addr, socklen_t *alen)
{
	fortify(len, have);
	return recvfrom(fd, buf, len, flags, addr, alen);
}
