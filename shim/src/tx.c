/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Sending: from the program's buffers into the H2D ring, one copy.
 *
 * Two limits: the socket's window (bytes the DPU has not taken) and the ring's
 * space. Either may cut a send short. With the window, writability comes back
 * by an acknowledgement; with the ring, by the DPU consuming it: the socket
 * then waits on the ring's list.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "fault.h"
#include "quiet.h"
#include "real.h"
#include "sock.h"
#include "stats.h"
#include "wait.h"

/*
 * Why nothing can be sent: 0 (it can), -errno, or 1 (not yet connected). A call
 * that has sent something reports that; the error is for the next one.
 */
static int obstacle(struct pno_sock *s, bool sent)
{
	int err = s->err;

	switch (s->state) {
	case PNO_OPEN:
		if (!err)
			return s->shut_wr ? -EPIPE : 0;
		break;
	case PNO_CONNECTING:
		return 1;
	case PNO_DEAD:
		if (!err)
			return -EPIPE;
		break;
	default:
		return -EPIPE;
	}
	if (sent)
		return -err;
	s->err = 0;
	pno_sock_refresh(s);
	return -err;
}

struct source {
	const struct iovec *iov;
	size_t n, at;
	/* sendfile, splice: from a file instead */
	int fd;
	off_t offset;
	bool seek; /* offset counts; else read() */
	bool more;
	ssize_t err; /* why it gave nothing: 0 at the end of the file, or -errno */
};

static size_t from_iov(struct source *src, uint8_t *to, size_t len)
{
	size_t done = 0;

	while (src->n && done < len) {
		size_t room = src->iov->iov_len - src->at;
		size_t k = room < len - done ? room : len - done;

		if (unlikely(!pno_copy(to + done, (char *)src->iov->iov_base + src->at, k))) {
			src->err = -EFAULT;
			return 0;
		}
		done += k;
		src->at += k;
		if (src->at == src->iov->iov_len) {
			src->iov++;
			src->n--;
			src->at = 0;
		}
	}
	return done;
}

static size_t from_file(struct source *src, uint8_t *to, size_t len)
{
	ssize_t k;

	do
		k = src->seek ? quiet_pread(src->fd, to, len, src->offset) : quiet_read(src->fd, to, len);
	while (k < 0 && errno == EINTR);
	if (k <= 0) {
		src->err = k < 0 ? -errno : 0;
		return 0;
	}
	src->offset += k;
	return k;
}

/* As much as window, ring and source allow. *dry: the source has ended. */
static size_t push(struct pno_sock *s, struct source *src, size_t want, bool *dry)
{
	struct pno_qp *q = s->qp;
	uint64_t window;
	size_t sent = 0;

	if (s->tx_acked == s->tx_sent)
		s->moved = false;
	window = pno_sock_window(s);
	pno_lock_inner(&q->tx_lock);
	while (sent < want && window > 0) {
		uint32_t n = want - sent < PNO_MAX_PAYLOAD ? want - sent : PNO_MAX_PAYLOAD;
		uint8_t *to;

		if (n > window)
			n = window;
		to = pno_qp_reserve(q, &n, 1, true);
		if (!to) {
			pno_sock_want_space(s, q);
			break;
		}
		n = src->iov ? from_iov(src, to, n) : from_file(src, to, n);
		if (!n) {
			*dry = true;
			break;
		}
		pno_qp_commit(q, (struct pno_record){
			.op = PNO_OP_SEND, .flags = src->more || (src->iov && sent + n < want) ? PNO_FLAG_MORE : 0,
			.len = n, .sock = s->handle, .seq = s->tx_sent, .ack = pno_sock_consumed(s) });
		s->tx_sent += n;
		window -= n;
		sent += n;
	}
	if (sent) {
		s->rx_told = pno_sock_consumed(s);
		pno_qp_publish(q);
	}
	pno_unlock_inner(&q->tx_lock);
	if (sent < want && !window)
		pno_count(tx_window_full);
	pno_sock_refresh(s);
	return sent;
}

static ssize_t send_all(struct pno_sock *s, struct source *src, size_t want, int flags)
{
	bool nowait = s->nonblock || (flags & MSG_DONTWAIT);
	bool looked = false, dry = false, tuned = false;
	int64_t deadline = 0;
	size_t sent = 0;
	int rc;

	/* A program that only sends must learn of a reset. */
	if (unlikely(s->sent_blind) && s->qp && pno_qp_moved(s->qp) && !pno_sock_look(s)) {
		pno_sock_unlock(s);
		return -EBADF;
	}
	s->sent_blind = true;
	for (;;) {
		rc = obstacle(s, sent > 0);
		if (rc < 0)
			break;
		if (!rc) {
			sent += push(s, src, want - sent, &dry);
			if (sent == want || dry)
				break;
		}
		if (unlikely(s->common) && !tuned) {
			tuned = true;
			pno_share_attune(s);
			nowait = s->nonblock || (flags & MSG_DONTWAIT);
		}
		if (nowait) {
			rc = -EAGAIN;
			if (looked || sent)
				break;
			looked = true;
			/* The acknowledgement may be there already. */
			if (pno_sock_look(s))
				continue;
			rc = -EBADF;
			break;
		}
		if (!deadline) {
			deadline = pno_deadline_within(s->snd_millis);
			pno_interrupts_begin();
		}
		rc = pno_sock_wait(s, EPOLLOUT, deadline);
		if (rc < 0 && (sent || !pno_wait_again(rc, deadline)))
			break;
	}
	if (sent) {
		pno_count(calls_tx);
		pno_count_add(bytes_tx, sent);
	}
	pno_sock_unlock(s);
	return sent ? (ssize_t)sent : rc < 0 ? rc : 0;
}

/* False: memory that is not there, or the sum of the lengths is none. */
static inline bool gather(uint8_t *to, size_t len, const struct iovec *iov, size_t n)
{
	if (likely(n == 1))
		return pno_copy(to, iov->iov_base, len);
	for (size_t i = 0; i < n; i++) {
		size_t k = iov[i].iov_len;

		if (unlikely(k > len || !pno_copy(to, iov[i].iov_base, k)))
			return false;
		to += k;
		len -= k;
	}
	return !len;
}

/*
 * The usual case: one record takes it all. 0: it is not so, or the memory is
 * not there, and nothing has been done.
 */
static inline size_t send_at_once(struct pno_sock *s, const struct iovec *iov, size_t n, size_t want, bool more)
{
	uint32_t window = pno_sock_tx_window(s);
	uint64_t out = s->tx_sent - s->tx_acked + want;
	struct pno_qp *q = s->qp;
	uint8_t *to;

	if (want > PNO_MAX_PAYLOAD || out > window || !pno_sock_flows(s) || s->shut_wr ||
	    (s->sent_blind && pno_qp_moved(q)))
		return 0;
	pno_lock_inner(&q->tx_lock);
	to = pno_qp_reserve_here(q, want);
	if (unlikely(!to || !gather(to, want, iov, n))) {
		pno_unlock_inner(&q->tx_lock);
		return 0;
	}
	pno_qp_commit_here(q, (struct pno_record){
		.op = PNO_OP_SEND, .flags = more ? PNO_FLAG_MORE : 0,
		.len = want, .sock = s->handle, .seq = s->tx_sent, .ack = pno_sock_consumed(s) });
	pno_qp_publish(q);
	pno_unlock_inner(&q->tx_lock);
	s->tx_sent += want;
	s->rx_told = pno_sock_consumed(s);
	s->sent_blind = true;
	if (unlikely(window - out < window / 4))
		pno_sock_refresh(s); /* no longer writable */
	pno_count_both(PNO_STAT_calls_tx, 1, PNO_STAT_bytes_tx, want);
	return want;
}

static __attribute__((noinline)) ssize_t send_at_length(struct pno_sock *s, const struct iovec *iov, size_t n,
							size_t want, int flags)
{
	struct source src = { .iov = iov, .n = n, .more = flags & MSG_MORE };
	ssize_t rc;

	if (unlikely(flags & MSG_OOB)) {
		pno_sock_unlock(s);
		pno_count(calls_refused);
		return -EOPNOTSUPP;
	}
	rc = send_all(s, &src, want, flags);
	if (rc == 0 && src.err)
		rc = src.err;
	if (rc == -EPIPE && !(flags & MSG_NOSIGNAL))
		raise(SIGPIPE);
	return rc;
}

ssize_t pno_sock_send(struct pno_sock *s, const struct iovec *iov, size_t n, int flags)
{
	size_t want = 0;

	for (size_t i = 0; i < n; i++)
		want += iov[i].iov_len;
	if (likely(want && s->state == PNO_OPEN && !(flags & MSG_OOB) &&
		   send_at_once(s, iov, n, want, flags & MSG_MORE))) {
		pno_sock_unlock(s);
		return want;
	}
	return send_at_length(s, iov, n, want, flags);
}

static bool readable(int fd)
{
	int flags = real.fcntl(fd, F_GETFL);

	return flags >= 0 && (flags & O_ACCMODE) != O_WRONLY;
}

/* Why a file has no position: it is none of those that sendfile reads. */
static int no_position(int fd)
{
	return errno == ESPIPE && readable(fd) ? -EINVAL : -EBADF;
}

/* From an open file, at its position or at one of the program's. */
ssize_t pno_sock_sendfile(struct pno_sock *s, int in, off_t *offset, size_t count)
{
	struct source src = { .fd = in, .seek = true };
	ssize_t rc;

	if ((ssize_t)count < 0)
		rc = -EINVAL;
	else if (offset)
		rc = !pno_copy(&src.offset, offset, sizeof *offset) ? -EFAULT : src.offset < 0 ? -EINVAL : 0;
	else
		rc = (src.offset = lseek(in, 0, SEEK_CUR)) < 0 ? no_position(in) : 0;
	if (!rc && !count && !readable(in))
		rc = -EBADF; /* which reading it would say */
	if (rc < 0 || !count) {
		pno_sock_unlock(s);
		return rc;
	}
	/* Longer transfers are cut like the kernel's. */
	if (count > 0x7ffff000)
		count = 0x7ffff000;
	rc = send_all(s, &src, count, 0);
	if (rc == 0 && src.err)
		rc = src.err == -EISDIR ? -EINVAL : src.err;
	if (rc > 0 && offset && !pno_copy(offset, &src.offset, sizeof *offset))
		rc = -EFAULT;
	else if (rc > 0 && !offset)
		lseek(in, src.offset, SEEK_SET);
	if (rc == -EPIPE)
		raise(SIGPIPE);
	return rc;
}

ssize_t pno_sock_from_pipe(struct pno_sock *s, int in, size_t count)
{
	struct source src = { .fd = in };
	ssize_t rc = send_all(s, &src, count, 0);

	if (rc == 0 && src.err)
		rc = src.err;
	if (rc == -EPIPE)
		raise(SIGPIPE);
	return rc;
}
