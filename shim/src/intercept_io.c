/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Entry points: everything that moves bytes. A descriptor that is not an
 * offloaded, connected socket costs one load more than without the shim.
 *
 * The __*_chk twins are what programs built with _FORTIFY_SOURCE call.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "fault.h"
#include "pass.h"
#include "real.h"
#include "sock.h"
#include "stats.h"
#include "udp.h"
#include "wait.h"

/* An offloaded socket, locked. Fresh and merely bound ones answer as the
 * kernel's placeholder does, but a datagram socket decides as it sends. */
static inline struct pno_sock *io_sock(int fd)
{
	struct pno_sock *s = pno_sock_lock(fd);

	if (likely(!s) || likely(s->state > PNO_BOUND) || s->udp)
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

/* Datagram sockets: every call is a sendmsg or a recvmsg. */
static ssize_t udp_in(struct pno_sock *s, int fd, const struct iovec *iov, size_t n, int flags)
{
	struct msghdr m = { .msg_iov = (struct iovec *)iov, .msg_iovlen = n };

	return give(pno_udp_recv(s, fd, &m, flags));
}

static ssize_t udp_out(struct pno_sock *s, int fd, const struct iovec *iov, size_t n, int flags)
{
	struct msghdr m = { .msg_iov = (struct iovec *)iov, .msg_iovlen = n };

	return give(pno_udp_send(s, fd, &m, flags));
}

static ssize_t udp_from(struct pno_sock *s, int fd, struct iovec *v, int flags, struct sockaddr *addr, socklen_t *alen)
{
	struct msghdr m = { .msg_iov = v, .msg_iovlen = 1, .msg_name = addr };
	ssize_t n;

	if (addr && !pno_get32(alen, &m.msg_namelen)) {
		pno_sock_unlock(s);
		return give(-EFAULT);
	}
	if ((int)m.msg_namelen < 0)
		m.msg_name = NULL; /* the datagram is lost */
	n = pno_udp_recv(s, fd, &m, flags);
	if (n >= 0 && addr)
		n = !m.msg_name ? -EINVAL : pno_put32(alen, m.msg_namelen) ? n : -EFAULT;
	return give(n);
}

static ssize_t udp_message(struct pno_sock *s, int fd, struct msghdr *m, int flags)
{
	struct msghdr copy = *m;
	ssize_t n = pno_udp_recv(s, fd, &copy, flags);

	if (n >= 0 && ((m->msg_name && !pno_put32(&m->msg_namelen, copy.msg_namelen)) ||
		       !pno_put32(&m->msg_flags, copy.msg_flags) || !pno_put64(&m->msg_controllen, copy.msg_controllen)))
		n = -EFAULT;
	return give(n);
}

static int bad_iov(const struct iovec *iov, size_t n, int too_many)
{
	if (n > IOV_MAX)
		return too_many;
	if (!pno_readable(iov, n * sizeof *iov))
		return EFAULT;
	for (size_t i = 0; i < n; i++)
		if ((ssize_t)iov[i].iov_len < 0)
			return EINVAL;
	return 0;
}

/* Unlocks the socket if the call ends here. */
static inline bool iov_ok(struct pno_sock *s, const struct iovec *iov, size_t n, int too_many)
{
	int err = bad_iov(iov, n, too_many);

	if (likely(!err))
		return true;
	pno_sock_unlock(s);
	errno = err;
	return false;
}

/* read() of nothing does nothing; recv() of nothing waits for something. */
static ssize_t nothing(struct pno_sock *s)
{
	pno_sock_unlock(s);
	return 0;
}

PNO_EXPORT ssize_t read(int fd, void *buf, size_t len)
{
	struct iovec v = { buf, len };
	struct pno_sock *s;

	PNO_ENTER_POINT();
	s = io_sock(fd);
	if (!s)
		return real.read(fd, buf, len);
	if (unlikely(!len))
		return nothing(s);
	return likely(!s->udp) ? give(pno_sock_recv(s, &v, 1, 0)) : udp_in(s, fd, &v, 1, 0);
}

static ssize_t read_vector(struct pno_sock *s, int fd, const struct iovec *iov, int n, int flags)
{
	if (!iov_ok(s, iov, n, EINVAL))
		return -1;
	while (n && !iov->iov_len) {
		iov++;
		n--;
	}
	if (unlikely(!n))
		return nothing(s);
	return likely(!s->udp) ? give(pno_sock_recv(s, iov, n, flags)) : udp_in(s, fd, iov, n, flags);
}

PNO_EXPORT ssize_t readv(int fd, const struct iovec *iov, int n)
{
	struct pno_sock *s;

	PNO_ENTER_POINT();
	s = io_sock(fd);
	return s ? read_vector(s, fd, iov, n, 0) : real.readv(fd, iov, n);
}

static ssize_t write_vector(struct pno_sock *s, int fd, const struct iovec *iov, int n, int flags)
{
	if (!iov_ok(s, iov, n, EINVAL))
		return -1;
	while (n && !iov->iov_len) {
		iov++;
		n--;
	}
	if (unlikely(!n))
		return nothing(s); /* other than write() of nothing */
	return likely(!s->udp) ? give(pno_sock_send(s, iov, n, flags)) : udp_out(s, fd, iov, n, flags);
}

/* preadv2 and pwritev2 at -1 are readv and writev with flags. A position a
 * socket has not: the placeholder says so. */
static struct pno_sock *io_sock_at(int fd, off_t at)
{
	return at == -1 ? io_sock(fd) : NULL;
}

static bool flags_ok(struct pno_sock *s, int flags)
{
	if (!(flags & ~(RWF_HIPRI | RWF_NOWAIT)))
		return true;
	pno_sock_unlock(s);
	errno = EOPNOTSUPP;
	return false;
}

PNO_EXPORT ssize_t preadv2(int fd, const struct iovec *iov, int n, off_t at, int flags)
{
	struct pno_sock *s;

	PNO_ENTER_POINT();
	s = io_sock_at(fd, at);
	if (!s)
		return real.preadv2(fd, iov, n, at, flags);
	return flags_ok(s, flags) ? read_vector(s, fd, iov, n, flags & RWF_NOWAIT ? MSG_DONTWAIT : 0) : -1;
}

PNO_EXPORT ssize_t preadv64v2(int fd, const struct iovec *iov, int n, off64_t at, int flags)
{
	return preadv2(fd, iov, n, at, flags);
}

PNO_EXPORT ssize_t pwritev2(int fd, const struct iovec *iov, int n, off_t at, int flags)
{
	struct pno_sock *s;

	PNO_ENTER_POINT();
	s = io_sock_at(fd, at);
	if (!s)
		return real.pwritev2(fd, iov, n, at, flags);
	return flags_ok(s, flags) ? write_vector(s, fd, iov, n, flags & RWF_NOWAIT ? MSG_DONTWAIT : 0) : -1;
}

PNO_EXPORT ssize_t pwritev64v2(int fd, const struct iovec *iov, int n, off64_t at, int flags)
{
	return pwritev2(fd, iov, n, at, flags);
}

PNO_EXPORT ssize_t recv(int fd, void *buf, size_t len, int flags)
{
	struct iovec v = { buf, len };
	struct pno_sock *s;

	PNO_ENTER_POINT();
	s = io_sock(fd);
	if (!s)
		return real.recv(fd, buf, len, flags);
	return likely(!s->udp) ? give(pno_sock_recv(s, &v, 1, flags)) : udp_in(s, fd, &v, 1, flags);
}

/* A stream names no sender. The kernel looks at the length when the data has
 * been taken. */
static ssize_t no_name(socklen_t *alen, ssize_t rc)
{
	socklen_t len;

	if (!pno_get32(alen, &len))
		return -EFAULT;
	if ((int)len < 0)
		return -EINVAL;
	return pno_put32(alen, 0) ? rc : -EFAULT;
}

PNO_EXPORT ssize_t recvfrom(int fd, void *buf, size_t len, int flags, struct sockaddr *addr, socklen_t *alen)
{
	struct iovec v = { buf, len };
	struct pno_sock *s;
	ssize_t rc;

	PNO_ENTER_POINT();
	s = io_sock(fd);
	if (!s)
		return real.recvfrom(fd, buf, len, flags, addr, alen);
	if (unlikely(s->udp))
		return udp_from(s, fd, &v, flags, addr, alen);
	rc = pno_sock_recv(s, &v, 1, flags);
	if (unlikely(rc >= 0 && addr))
		rc = no_name(alen, rc);
	return give(rc);
}

/* Control messages to a stream: none that says anything to TCP. */
static int bad_control(const struct msghdr *m)
{
	if (m->msg_controllen > INT_MAX)
		return ENOBUFS;
	if (!pno_readable(m->msg_control, m->msg_controllen))
		return EFAULT;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR((struct msghdr *)m, c)) {
		if (c->cmsg_len < sizeof *c || c->cmsg_len > m->msg_controllen)
			return EINVAL;
		if (c->cmsg_level == SOL_SOCKET && c->cmsg_type != SCM_RIGHTS && c->cmsg_type != SCM_CREDENTIALS)
			return EINVAL;
	}
	return 0;
}

static bool head_ok(struct pno_sock *s, const struct msghdr *m, bool send)
{
	int err = 0;

	if (!pno_readable(m, sizeof *m))
		err = EFAULT;
	else if (m->msg_name && (int)m->msg_namelen < 0)
		err = EINVAL;
	else if (unlikely(send && m->msg_name && m->msg_namelen) &&
		 !pno_readable(m->msg_name, m->msg_namelen < 128 ? m->msg_namelen : 128))
		err = EFAULT;
	else if (unlikely(send && m->msg_controllen))
		err = bad_control(m);
	if (likely(!err))
		return true;
	pno_sock_unlock(s);
	errno = err;
	return false;
}

PNO_EXPORT ssize_t recvmsg(int fd, struct msghdr *m, int flags)
{
	struct pno_sock *s;
	ssize_t n;

	PNO_ENTER_POINT();
	s = io_sock(fd);
	if (!s) {
		n = real.recvmsg(fd, m, flags);
		if (n >= 0 && m->msg_controllen)
			pno_inherit_message(m);
		return n;
	}
	if (!head_ok(s, m, false) || !iov_ok(s, m->msg_iov, m->msg_iovlen, EMSGSIZE))
		return -1;
	if (unlikely(s->udp))
		return udp_message(s, fd, m, flags);
	n = pno_sock_recv(s, m->msg_iov, m->msg_iovlen, flags);
	if (n >= 0 && ((m->msg_name && !pno_put32(&m->msg_namelen, 0)) ||
		       !pno_put32(&m->msg_flags, flags & MSG_CMSG_CLOEXEC) || !pno_put64(&m->msg_controllen, 0)))
		n = -EFAULT;
	return give(n);
}

/* The time that recvmmsg may take: looked at after each message. */
static bool until(const struct timespec *t, int64_t *end)
{
	struct timespec v;

	if (!pno_copy(&v, t, sizeof v)) {
		errno = EFAULT;
		return false;
	}
	if (v.tv_sec < 0 || v.tv_nsec < 0 || v.tv_nsec > 999999999) {
		errno = EINVAL;
		return false;
	}
	*end = v.tv_sec > INT64_MAX / 2000000000 ? PNO_NEVER : pno_now() + v.tv_sec * 1000000000ll + v.tv_nsec;
	return true;
}

static bool left(struct timespec *t, int64_t end)
{
	int64_t ns = end - pno_now();

	*t = (struct timespec){ ns > 0 ? ns / 1000000000 : 0, ns > 0 ? ns % 1000000000 : 0 };
	return ns > 0;
}

PNO_EXPORT int recvmmsg(int fd, struct mmsghdr *v, unsigned n, int flags, struct timespec *timeout)
{
	struct pno_sock *s;
	int64_t end = 0;
	unsigned i;

	PNO_ENTER_POINT();
	s = io_sock(fd);
	if (!s) {
		int got = real.recvmmsg(fd, v, n, flags, timeout);

		for (int k = 0; k < got; k++)
			if (unlikely(v[k].msg_hdr.msg_controllen))
				pno_inherit_message(&v[k].msg_hdr);
		return got;
	}
	if (s->err && s->state == PNO_DEAD && !(flags & MSG_ERRQUEUE)) {
		errno = s->err; /* comes before what can still be read */
		s->err = 0;
		pno_sock_refresh(s);
		pno_sock_unlock(s);
		return -1;
	}
	pno_sock_unlock(s);
	if (timeout && !until(timeout, &end))
		return -1;
	for (i = 0; i < n && i < UIO_MAXIOV; i++) {
		ssize_t got = recvmsg(fd, &v[i].msg_hdr, flags & ~MSG_WAITFORONE);

		if (got < 0)
			break;
		if (!pno_put32(&v[i].msg_len, got)) {
			errno = EFAULT;
			break;
		}
		if (flags & MSG_WAITFORONE)
			flags |= MSG_DONTWAIT;
		if (timeout && !left(timeout, end)) {
			i++;
			break;
		}
	}
	return i || !n ? (int)i : -1;
}

PNO_EXPORT ssize_t write(int fd, const void *buf, size_t len)
{
	struct iovec v = { (void *)buf, len };
	struct pno_sock *s;

	PNO_ENTER_POINT();
	s = io_sock(fd);
	if (!s)
		return real.write(fd, buf, len);
	return likely(!s->udp) ? give(pno_sock_send(s, &v, 1, 0)) : udp_out(s, fd, &v, 1, 0);
}

PNO_EXPORT ssize_t writev(int fd, const struct iovec *iov, int n)
{
	struct pno_sock *s;

	PNO_ENTER_POINT();
	s = io_sock(fd);
	return s ? write_vector(s, fd, iov, n, 0) : real.writev(fd, iov, n);
}

PNO_EXPORT ssize_t send(int fd, const void *buf, size_t len, int flags)
{
	struct iovec v = { (void *)buf, len };
	struct pno_sock *s;

	PNO_ENTER_POINT();
	s = io_sock(fd);
	if (!s)
		return real.send(fd, buf, len, flags);
	return likely(!s->udp) ? give(pno_sock_send(s, &v, 1, flags)) : udp_out(s, fd, &v, 1, flags);
}

/*
 * MSG_FASTOPEN connects with data in the first segment, if the peer has told
 * before that it takes some: it may always be done in two steps. The kernel
 * must not do it, it does not know whose the socket is to be.
 */
static bool to_connect(int fd)
{
	struct pno_sock *s = pno_sock_peek(fd);
	bool yes;

	if (!s)
		return false;
	yes = !s->udp && s->state <= PNO_BOUND;
	pno_sock_unlock(s);
	return yes;
}

PNO_EXPORT ssize_t sendto(int fd, const void *buf, size_t len, int flags, const struct sockaddr *addr, socklen_t alen)
{
	struct iovec v = { (void *)buf, len };
	struct pno_sock *s;

	PNO_ENTER_POINT();
	s = io_sock(fd);
	if (!s && unlikely(flags & MSG_FASTOPEN) && to_connect(fd))
		return connect(fd, addr, alen) < 0 ? -1 : send(fd, buf, len, flags & ~MSG_FASTOPEN);
	if (!s)
		return real.sendto(fd, buf, len, flags, addr, alen);
	if (unlikely(addr) && (alen > sizeof(struct sockaddr_storage) || !pno_readable(addr, alen))) {
		pno_sock_unlock(s);
		return give(alen > sizeof(struct sockaddr_storage) ? -EINVAL : -EFAULT);
	}
	if (unlikely(s->udp)) {
		struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_name = (void *)addr, .msg_namelen = alen };

		return give(pno_udp_send(s, fd, &m, flags));
	}
	return give(pno_sock_send(s, &v, 1, flags));
}

PNO_EXPORT ssize_t sendmsg(int fd, const struct msghdr *m, int flags)
{
	struct pno_sock *s;

	PNO_ENTER_POINT();
	s = io_sock(fd);
	if (!s) {
		if (pno_readable(m, sizeof *m) && unlikely(m->msg_controllen) &&
		    pno_readable(m->msg_control, m->msg_controllen))
			pno_pass_message(m);
		if (unlikely(flags & MSG_FASTOPEN) && pno_readable(m, sizeof *m) && to_connect(fd))
			return connect(fd, m->msg_name, m->msg_namelen) < 0 ? -1 : sendmsg(fd, m, flags & ~MSG_FASTOPEN);
		return real.sendmsg(fd, m, flags);
	}
	if (!head_ok(s, m, true) || !iov_ok(s, m->msg_iov, m->msg_iovlen, EMSGSIZE))
		return -1;
	if (unlikely(s->udp))
		return give(pno_udp_send(s, fd, m, flags));
	return give(pno_sock_send(s, m->msg_iov, m->msg_iovlen, flags));
}

PNO_EXPORT int sendmmsg(int fd, struct mmsghdr *v, unsigned n, int flags)
{
	struct pno_sock *s;
	unsigned i;

	PNO_ENTER_POINT();
	s = io_sock(fd);
	if (!s) {
		if (pno_readable(v, n * sizeof *v))
			for (i = 0; i < n; i++)
				if (unlikely(v[i].msg_hdr.msg_controllen) &&
				    pno_readable(v[i].msg_hdr.msg_control, v[i].msg_hdr.msg_controllen))
					pno_pass_message(&v[i].msg_hdr);
		return real.sendmmsg(fd, v, n, flags);
	}
	pno_sock_unlock(s);
	for (i = 0; i < n && i < UIO_MAXIOV; i++) {
		ssize_t sent = sendmsg(fd, &v[i].msg_hdr, flags);

		if (sent < 0)
			break;
		if (!pno_put32(&v[i].msg_len, sent)) {
			errno = EFAULT;
			break;
		}
	}
	return i || !n ? (int)i : -1;
}

/* The source may be an offloaded socket, which no file read can serve. */
static bool is_offloaded(int fd)
{
	struct pno_sock *s = io_sock(fd);
	bool yes = s && s->state > PNO_BOUND;

	if (s)
		pno_sock_unlock(s);
	return yes;
}

/* Nothing reads a socket by pages; but first the kernel looks at the rest. */
static int from_socket_to(int out, const off_t *offset)
{
	int flags = real.fcntl(out, F_GETFL);

	if (offset)
		return -ESPIPE;
	return flags < 0 || (flags & O_ACCMODE) == O_RDONLY ? -EBADF : -EINVAL;
}

PNO_EXPORT ssize_t sendfile(int out, int in, off_t *offset, size_t count)
{
	struct pno_sock *s;

	PNO_ENTER();
	if (unlikely(is_offloaded(in))) {
		pno_count(calls_refused);
		return give(from_socket_to(out, offset));
	}
	s = io_sock(out);
	if (unlikely(s && s->udp)) {
		bool offloaded = s->state > PNO_BOUND;

		pno_sock_unlock(s);
		if (!offloaded)
			return real.sendfile(out, in, offset, count);
		pno_count(calls_refused);
		return give(-EINVAL);
	}
	return s ? give(pno_sock_sendfile(s, in, offset, count)) : real.sendfile(out, in, offset, count);
}

_Static_assert(sizeof(off_t) == 8, "the 64-bit twins are the same");

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
