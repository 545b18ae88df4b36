/* SPDX-License-Identifier: Apache-2.0 */

/*
 * splice between an offloaded socket and a pipe, which is how HAProxy moves
 * data that it does not look at. There are no pages to hand over here: bytes
 * are copied, once more than by recv and send, but the program's pipes and its
 * counts stay true.
 *
 * A pipe must never be waited for with a socket's lock held, and bytes must
 * not be taken from one side before the other has room. Towards the socket,
 * no more is read from the pipe than is in it (FIONREAD), and sendfile's loop
 * reads only what ring and window have room for. Towards the pipe, bytes are
 * peeked, written, and then dropped from the socket. SPLICE_F_NONBLOCK is
 * about the pipe only; the socket has its O_NONBLOCK.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "fault.h"
#include "real.h"
#include "relay.h"
#include "sock.h"

#define CHUNK 16384
#define ALL_FLAGS (SPLICE_F_MOVE | SPLICE_F_NONBLOCK | SPLICE_F_MORE | SPLICE_F_GIFT)

/* Waits for the pipe unless told not to: 1 ready, 0 not, or -errno. */
static int pipe_ready(int fd, short events, bool wait)
{
	struct pollfd p = { .fd = fd, .events = events };
	int rc = real.poll(&p, 1, wait ? -1 : 0);

	return rc < 0 ? -errno : rc;
}

/* What a pipe takes. With room for a page, a page does not block. */
static ssize_t to_pipe(int fd, const uint8_t *buf, size_t len, bool wait)
{
	bool nonblock = real.fcntl(fd, F_GETFL) & O_NONBLOCK;
	size_t done = 0;

	while (done < len) {
		size_t n = len - done;
		ssize_t k;
		int rc = pipe_ready(fd, POLLOUT, wait && !done && !nonblock);

		if (rc <= 0)
			return done ? (ssize_t)done : rc ? rc : -EAGAIN;
		if (!nonblock && n > PIPE_BUF)
			n = PIPE_BUF;
		k = real.write(fd, buf + done, n);
		if (k < 0)
			return done ? (ssize_t)done : -errno;
		done += k;
	}
	return done;
}

static ssize_t peek(int fd, uint8_t *buf, size_t len, int flags, bool more)
{
	struct iovec v = { buf, len };
	struct pno_sock *s = pno_sock_lock(fd);

	if (!s)
		return -EBADF;
	if (unlikely(s->hold) && more && !s->rx_head) {
		pno_sock_unlock(s);
		return -EAGAIN; /* the rest is on hold */
	}
	return pno_sock_recv(s, &v, 1, flags);
}

/* Whether to ask for more: an error, if that is what comes next, is left for the
 * next call. */
static bool has_more(int fd)
{
	struct pno_sock *s = pno_sock_lock(fd);
	bool yes = s && (pno_sock_unread(s) || (s->state == PNO_OPEN && pno_sock_look(s) && pno_sock_unread(s)));

	if (s)
		pno_sock_unlock(s);
	return yes;
}

static ssize_t from_socket(int in, int out, size_t len, bool wait)
{
	uint8_t buf[CHUNK];
	size_t done = 0;

	while (done < len) {
		size_t want = len - done < CHUNK ? len - done : CHUNK;
		ssize_t n = peek(in, buf, want, MSG_PEEK | (done ? MSG_DONTWAIT : 0), done);
		ssize_t k;

		if (n <= 0)
			return done ? (ssize_t)done : n;
		k = to_pipe(out, buf, n, wait && !done);
		if (k < 0)
			return done ? (ssize_t)done : k;
		peek(in, buf, k, MSG_TRUNC | MSG_DONTWAIT, false);
		done += k;
		if (k < n || !has_more(in))
			break;
	}
	return done;
}

static ssize_t to_socket(int in, int out, size_t len, bool wait)
{
	struct pno_sock *s;
	int there = 0, rc;

	rc = pipe_ready(in, POLLIN, wait && !(real.fcntl(in, F_GETFL) & O_NONBLOCK));
	if (rc <= 0)
		return rc ? rc : -EAGAIN;
	if (real.ioctl(in, FIONREAD, &there) < 0)
		return -errno;
	if (!there)
		return 0; /* nobody will write to it any more */
	s = pno_sock_lock(out);
	return s ? pno_sock_from_pipe(s, in, len < (size_t)there ? len : (size_t)there) : -EBADF;
}

/* The same, of a pipe that the shim knows, by way of the DPU if that can be. */
static ssize_t into_known(int in, int out, size_t len, bool wait)
{
	ssize_t rc = pno_relay_in(in, out, len, wait);

	if (rc != PNO_RELAY_NO)
		return rc;
	pno_pipe_fetch_fd(out);
	rc = from_socket(in, out, len, wait);
	if (rc > 0)
		pno_relay_fed(in, out, rc);
	return rc;
}

static ssize_t out_of_known(int in, int out, size_t len, bool wait)
{
	ssize_t rc = pno_relay_out(in, out, len, wait);

	if (rc != PNO_RELAY_NO)
		return rc;
	rc = to_socket(in, out, len, wait);
	if (rc > 0)
		pno_relay_passed(in, out, rc);
	return rc;
}

static bool offloaded(int fd, bool *dgram)
{
	struct pno_sock *s = pno_sock_lock(fd);
	bool yes;

	if (!s)
		return false;
	yes = s->state > PNO_BOUND;
	*dgram = yes && s->udp;
	pno_sock_unlock(s);
	return yes;
}

/* The checks of the kernel on the other end, in its order: 0 or -errno. One of
 * the two must be a pipe. */
static int check(int pipe, int mode, const off64_t *pipe_offset, const off64_t *socket_offset)
{
	int flags = real.fcntl(pipe, F_GETFL);
	bool is_pipe = real.fcntl(pipe, F_GETPIPE_SZ) > 0;

	if (flags < 0)
		return -EBADF;
	if (is_pipe && pipe_offset)
		return -ESPIPE;
	if (!pno_readable(pipe_offset, pipe_offset ? sizeof *pipe_offset : 0) ||
	    !pno_readable(socket_offset, socket_offset ? sizeof *socket_offset : 0))
		return -EFAULT;
	if ((flags & O_ACCMODE) != mode && (flags & O_ACCMODE) != O_RDWR)
		return -EBADF;
	return is_pipe && !socket_offset ? 0 : -EINVAL;
}

static bool known(int fd, int end)
{
	return pno_fd_is_pipe(fd) && ((const struct pno_pipe *)pno_fd_obj(fd))->fd[end] == fd;
}

static bool stream(int fd)
{
	bool dgram = false;

	return !pno_fd_is_pipe(fd) && offloaded(fd, &dgram) && !dgram;
}

static ssize_t give(ssize_t rc)
{
	if (rc >= 0)
		return rc;
	errno = -rc;
	return -1;
}

PNO_EXPORT ssize_t splice(int in, off64_t *off_in, int out, off64_t *off_out, size_t len, unsigned flags)
{
	bool plain = !off_in && !off_out && len && !(flags & ~ALL_FLAGS);
	bool wait = !(flags & SPLICE_F_NONBLOCK);
	bool in_ours, dgram = false;
	ssize_t rc;

	PNO_ENTER();
	if (plain && known(out, 1) && stream(in))
		return give(into_known(in, out, len, wait));
	if (plain && known(in, 0) && stream(out))
		return give(out_of_known(in, out, len, wait));
	in_ours = offloaded(in, &dgram);
	if ((!in_ours && !offloaded(out, &dgram)) || !len || (flags & ~ALL_FLAGS))
		return real.splice(in, off_in, out, off_out, len, flags);
	if (in_ours)
		rc = check(out, O_WRONLY, off_out, off_in);
	else
		rc = check(in, O_RDONLY, off_in, off_out);
	if (!rc && dgram)
		rc = -EINVAL;
	if (!rc)
		rc = in_ours ? from_socket(in, out, len, wait) : to_socket(in, out, len, wait);
	return give(rc);
}
