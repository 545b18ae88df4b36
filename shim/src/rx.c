/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Receiving: from the stream's segments into the program's buffers, one copy.
 *
 * Consumption is reported by the next Send, which a server makes anyway, or by
 * RxAck when a quarter of the window has gathered; on a shared socket at once,
 * so that another process continues at the right byte.
 */
#include <errno.h>
#include <string.h>

#include "fault.h"
#include "real.h"
#include "relay.h"
#include "sock.h"
#include "stats.h"
#include "wait.h"

/* Where a copy into an iovec stands. */
struct cursor {
	const struct iovec *iov;
	size_t n, at;
	bool discard; /* MSG_TRUNC: count, do not copy */
	bool fault;   /* met memory that is not there */
};

static size_t put(struct cursor *c, const uint8_t *data, size_t len)
{
	size_t done = 0;

	while (c->n && done < len) {
		size_t room = c->iov->iov_len - c->at;
		size_t k = room < len - done ? room : len - done;

		if (!c->discard && unlikely(!pno_copy((char *)c->iov->iov_base + c->at, data + done, k))) {
			c->fault = true;
			return 0;
		}
		done += k;
		c->at += k;
		if (c->at == c->iov->iov_len) {
			c->iov++;
			c->n--;
			c->at = 0;
		}
	}
	return done;
}

static size_t take(struct pno_sock *s, struct cursor *c)
{
	uint64_t from = s->rx_read;
	size_t k, len;
	struct pno_seg *g;

	while ((g = s->rx_head) && s->rx_read < s->rx_next) {
		uint64_t skip = s->rx_read - g->off;

		if (skip >= g->len) {
			pno_rx_drop_head(s);
			continue;
		}
		len = g->len - skip;
		k = put(c, g->data + skip, len);
		if (unlikely(c->fault))
			break; /* the whole segment stays */
		s->rx_read += k;
		if (k < len)
			break;
		pno_rx_drop_head(s);
	}
	return s->rx_read - from;
}

size_t pno_sock_copy(struct pno_sock *s, const struct iovec *v)
{
	struct cursor c = { v, 1, 0, false, false };

	return take(s, &c);
}

static __attribute__((noinline)) size_t peek(const struct pno_sock *s, struct cursor *c)
{
	uint64_t at = s->rx_read;

	for (const struct pno_seg *g = s->rx_head; g && at < s->rx_next; g = g->next) {
		uint64_t skip = at - g->off;
		size_t k;

		if (skip >= g->len)
			continue;
		k = put(c, g->data + skip, g->len - skip);
		if (unlikely(c->fault))
			break;
		at += k;
		if (k < g->len - skip)
			break;
	}
	return at - s->rx_read;
}

/* What a read finds instead of data: 0 (end), -errno, or 1 (nothing yet). */
static inline int instead(struct pno_sock *s)
{
	int err = s->err;

	if (pno_sock_ended(s) && !s->unconnected)
		return 0; /* an error after that is for who writes */
	switch (s->state) {
	case PNO_OPEN:
		if (err)
			break;
		return !s->shut_rd;
	case PNO_CONNECTING:
		return 1;
	case PNO_DEAD:
		if (!err)
			return s->unconnected ? -ENOTCONN : 0;
		if (pno_sock_ended(s))
			return 0; /* an orderly end came before; sends get the error */
		break;
	default:
		return -ENOTCONN;
	}
	s->err = 0;
	pno_sock_refresh(s);
	return -err;
}

int pno_sock_instead(struct pno_sock *s)
{
	return instead(s);
}

static size_t capacity(const struct iovec *iov, size_t n)
{
	size_t sum = 0;

	for (size_t i = 0; i < n; i++)
		sum += iov[i].iov_len;
	return sum;
}

/* Not enough there: looks at the ring once more, then waits. 0 or -errno. */
static int wait_data(struct pno_sock *s, int flags, bool *looked, int64_t *deadline)
{
	if (!*looked) {
		*looked = true;
		if (unlikely(s->common))
			pno_share_attune(s);
		if (s->claiming || !pno_qp_calm(s->qp))
			return pno_sock_look(s) ? 0 : -EBADF;
	}
	if (s->nonblock || (flags & MSG_DONTWAIT))
		return -EAGAIN;
	if (!*deadline) {
		*deadline = pno_deadline_within(s->rcv_millis);
		pno_interrupts_begin();
	}
	return pno_sock_wait_data(s, *deadline);
}

static inline void consumed(struct pno_sock *s, size_t n)
{
	pno_count_both(PNO_STAT_calls_rx, 1, PNO_STAT_bytes_rx, n);
	if (likely(pno_sock_flows(s) && !pno_sock_unread(s)))
		pno_sock_readable(s, false);
	else
		pno_sock_refresh(s);
	if (unlikely(s->shared) || (s->state == PNO_OPEN && unlikely(pno_sock_ack_due(s))))
		pno_sock_ack(s, s->shared);
}

/*
 * The usual case: the buffer takes all that is there, and that is one segment.
 * 0: it is not so, or the memory is not there, and nothing has been done.
 */
static inline size_t recv_at_once(struct pno_sock *s, const struct iovec *iov)
{
	struct pno_seg *g = s->rx_head;
	size_t len;

	if (!g || g->next || g->off != s->rx_read || s->rx_read == s->rx_next)
		return 0;
	len = g->len;
	if (len > iov->iov_len || s->rcvlowat > 1 || unlikely(!pno_copy(iov->iov_base, g->data, len)))
		return 0;
	s->rx_read += len;
	s->sent_blind = false;
	pno_rx_drop_head(s);
	consumed(s, len);
	return len;
}

/* The usual case of a read too many, as of a poller that waits for edges. */
static inline bool nothing_yet(struct pno_sock *s, const struct iovec *iov, int flags)
{
	if (!pno_sock_flows(s) || pno_sock_unread(s) || s->common || s->claiming || !iov->iov_len ||
	    !(s->nonblock || flags) || !pno_qp_calm(s->qp))
		return false;
	s->sent_blind = false;
	return true;
}

/* A read of nothing waits for data, and takes none. Whatever ends the wait, it
 * has nothing to say of it. Nor is there ever anything urgent, or an error queue. */
static __attribute__((noinline)) ssize_t recv_nothing(struct pno_sock *s, int flags)
{
	int rc = flags & MSG_OOB ? -EINVAL : flags & MSG_ERRQUEUE ? -EAGAIN : 0;
	int64_t deadline = 0;
	bool looked = false;

	while (!rc && !pno_sock_unread(s) && (rc = pno_sock_instead(s)) > 0) {
		rc = wait_data(s, flags, &looked, &deadline);
		if (deadline && rc != -EBADF)
			rc = 0; /* it has waited */
		if (deadline || rc < 0)
			break;
	}
	pno_sock_unlock(s);
	return rc;
}

/*
 * More may have come since anybody looked at the ring. Who takes his time gets
 * all that is there, as from the kernel: a client that reads one line and closes
 * must not leave the next one unread. Who reads what epoll_wait has just told of
 * does not pay for another look.
 */
static inline bool outdated(const struct pno_sock *s)
{
	return s->qp && pno_ticks() - __atomic_load_n(&s->qp->chan->drained, __ATOMIC_RELAXED) > PNO_SOME_TICKS &&
	       pno_qp_moved(s->qp);
}

static __attribute__((noinline)) ssize_t recv_at_length(struct pno_sock *s, const struct iovec *iov, size_t n, int flags)
{
	struct cursor c = { iov, n, 0, flags & MSG_TRUNC, false };
	bool nowait = s->nonblock || (flags & MSG_DONTWAIT);
	bool looked = false;
	int64_t deadline = 0;
	ssize_t got = 0, rc = 0;
	size_t want = capacity(iov, n), enough;

	enough = flags & MSG_WAITALL ? want : pno_sock_lowat(s);
	if (enough > want)
		enough = want;
	if (unlikely(flags & MSG_PEEK) && s->ses && enough > s->ses->rx_window / 2)
		enough = s->ses->rx_window / 2; /* more is never there at once */
	s->sent_blind = false;
	if (unlikely(!want || flags & (MSG_OOB | MSG_ERRQUEUE)))
		return recv_nothing(s, flags);
	for (;;) {
		if (unlikely(flags & MSG_PEEK)) {
			struct cursor from_start = { iov, n, 0, c.discard, false };

			got = peek(s, &from_start);
			c.fault = from_start.fault;
		} else {
			got += take(s, &c);
		}
		if (unlikely(c.fault)) {
			rc = -EFAULT;
			break;
		}
		if (got && ((size_t)got >= enough || nowait))
			break;
		if (got && (s->err || s->state != PNO_OPEN))
			break; /* the next call says why */
		if (unlikely(s->hold) && pno_sock_unread(s)) {
			if (pno_relay_fetch(s))
				continue;
			rc = -EBADF;
			break;
		}
		rc = instead(s);
		if (rc <= 0)
			break;
		if (got && !(flags & MSG_PEEK))
			consumed(s, 0);
		rc = wait_data(s, flags, &looked, &deadline);
		if (rc < 0 && (got || !pno_wait_again(rc, deadline)))
			break;
	}
	if (likely(got > 0)) {
		rc = got;
		if (s->state != PNO_FREE && !(flags & MSG_PEEK))
			consumed(s, got);
	}
	pno_sock_unlock(s);
	return rc;
}

ssize_t pno_sock_recv(struct pno_sock *s, const struct iovec *iov, size_t n, int flags)
{
	size_t got;

	if (s->rx_head && unlikely(outdated(s)) && !pno_sock_look(s)) {
		pno_sock_unlock(s);
		return -EBADF;
	}
	if (likely(n == 1 && !(flags & ~MSG_DONTWAIT))) {
		got = recv_at_once(s, iov);
		if (likely(got || nothing_yet(s, iov, flags))) {
			pno_sock_unlock(s);
			return got ? (ssize_t)got : -EAGAIN;
		}
	}
	return recv_at_length(s, iov, n, flags);
}
