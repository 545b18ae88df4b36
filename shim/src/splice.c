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
 * peeked, written, and then dropped from the socket.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "real.h"
#include "sock.h"

#define CHUNK 16384

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

static ssize_t peek(int fd, uint8_t *buf, size_t len, int flags)
{
	struct iovec v = { buf, len };
	struct pno_sock *s = pno_sock_lock(fd);

	return s ? pno_sock_recv(s, &v, 1, flags) : -EBADF;
}

static ssize_t from_socket(int in, int out, size_t len, bool wait)
{
	uint8_t buf[CHUNK];
	size_t done = 0;

	while (done < len) {
		size_t want = len - done < CHUNK ? len - done : CHUNK;
		int nowait = done || !wait ? MSG_DONTWAIT : 0;
		ssize_t n = peek(in, buf, want, MSG_PEEK | nowait);
		ssize_t k;

		if (n <= 0)
			return done ? (ssize_t)done : n;
		k = to_pipe(out, buf, n, wait && !done);
		if (k < 0)
			return done ? (ssize_t)done : k;
		peek(in, buf, k, MSG_TRUNC | MSG_DONTWAIT);
		done += k;
		if (k < n)
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
	return s ? pno_sock_sendfile(s, in, NULL, len < (size_t)there ? len : (size_t)there) : -EBADF;
}

static bool offloaded(int fd)
{
	struct pno_sock *s = pno_sock_lock(fd);
	bool yes;

	if (!s)
		return false;
	yes = s->state > PNO_BOUND;
	pno_sock_unlock(s);
	return yes;
}

static bool is_pipe(int fd)
{
	return real.fcntl(fd, F_GETPIPE_SZ) > 0;
}

PNO_EXPORT ssize_t splice(int in, off64_t *off_in, int out, off64_t *off_out, size_t len, unsigned flags)
{
	bool wait = !(flags & SPLICE_F_NONBLOCK);
	bool in_ours, out_ours;
	ssize_t rc;

	PNO_ENTER();
	in_ours = offloaded(in);
	out_ours = offloaded(out);
	if (!in_ours && !out_ours)
		return real.splice(in, off_in, out, off_out, len, flags);
	if (off_in || off_out)
		rc = -ESPIPE;
	else if (in_ours && is_pipe(out))
		rc = from_socket(in, out, len, wait);
	else if (out_ours && is_pipe(in))
		rc = to_socket(in, out, len, wait);
	else
		rc = -EINVAL;
	if (rc >= 0)
		return rc;
	errno = -rc;
	return -1;
}
