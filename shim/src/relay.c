/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Splice between two offloaded sockets without the bytes: docs/protocol.md,
 * section 4, "Splicing".
 *
 * A socket whose bytes went through a pipe to another socket of its shard, a
 * few times in a row, is put on hold: from then on the DPU keeps what it
 * receives and tells how much there is (Held). A splice into a pipe then
 * only notes in the pipe which bytes they are; a splice out of it is a Move
 * record. Whatever else wants the bytes has them fetched first: the hold ends,
 * they come as Data, and those that the pipe has are written into it.
 *
 * What is on hold lies behind the segments: rx_next is its end. Bytes in a pipe
 * count as read by the program (rx_read) but not as consumed (lent): the DPU has to keep them. Only one pipe at a time has any of a
 * socket's, and they are the last that were read.
 *
 * A read of a socket on hold is a guess that failed, and costs a round trip:
 * every one doubles how often it has to be relayed before it is tried again.
 */
#include "relay.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"
#include "quiet.h"
#include "real.h"
#include "stats.h"

#define PATIENCE     2  /* relays in a row before a hold */
#define MAX_PATIENCE 64
#define MAX_PIPE     (1 << 20) /* what a user may ask for who is not root */
#define CHUNK        16384
#define NAP_NANOS    20000

static atomic_uint stopped;

/* Whether all that can be read is here, and not on hold. */
static bool is_here(const struct pno_sock *s, uint64_t end)
{
	return (int64_t)(end - s->rx_next) <= 0;
}

/* Waits until the bytes up to end are here: false, the socket was closed. Of a
 * connection that is over there is no later: what came makes room at once. */
static bool await(struct pno_sock *s, uint64_t end)
{
	uint32_t generation = s->generation;

	while (!is_here(s, end) && !atomic_load_explicit(&s->ses->lost, memory_order_relaxed)) {
		struct pno_session *ses = s->ses;
		uint64_t before = s->rx_next;

		if (!pno_sock_look(s))
			return false;
		if (s->rx_next != before && s->state == PNO_DEAD) {
			s->rx_told = s->rx_next;
			pno_sock_record(s, s->qp, (struct pno_record){
				.op = PNO_OP_RX_ACK, .sock = s->handle, .ack = s->rx_told }, NULL);
		}
		if (s->rx_next != before)
			continue;
		pno_sock_unlock(s);
		quiet_nap(NAP_NANOS);
		pno_session_check(ses);
		pno_lock(&s->lock);
		if (s->generation != generation)
			return false;
	}
	return true;
}

/* Takes back what a pipe has of the socket: the number of bytes. */
static uint64_t reclaim(const struct pno_sock *s, struct pno_pipe **pipe)
{
	uint64_t n = 0;

	for (struct pno_pipe *p = pno_pipe_first(); p && !n; p = p->all) {
		pno_lock(&p->lock);
		if (p->feeder == s && p->generation == s->generation) {
			n = p->len;
			p->len = 0;
			p->real += n;
			*pipe = p;
		}
		pno_unlock(&p->lock);
	}
	return n;
}

/* The next n bytes of the stream, into the pipe: there is room for them, but
 * they may be more than a window, so they are taken as they come. */
static bool fill(struct pno_sock *s, const struct pno_pipe *p, uint64_t n)
{
	uint8_t buf[CHUNK];

	while (n) {
		struct iovec v = { buf, n < sizeof buf ? n : sizeof buf };

		if (!await(s, s->rx_read + v.iov_len))
			return false;
		if (!is_here(s, s->rx_read + v.iov_len))
			break; /* lost with the DPU */
		if (pno_sock_copy(s, &v) != v.iov_len || quiet_write(p->fd[1], buf, v.iov_len) != (ssize_t)v.iov_len)
			break;
		n -= v.iov_len;
		pno_sock_ack(s, false);
	}
	if (n)
		pno_log(PNO_ERROR, "%llu bytes of a spliced connection do not go into their pipe", (unsigned long long)n);
	return true;
}

bool pno_relay_fetch(struct pno_sock *s)
{
	uint32_t generation = s->generation;
	struct pno_pipe *p = NULL;
	uint64_t end, n;

	while (s->settling) {
		pno_sock_unlock(s);
		quiet_nap(NAP_NANOS);
		pno_lock(&s->lock);
		if (s->generation != generation)
			return false;
	}
	if (!s->hold)
		return true;
	end = s->rx_next;
	s->settling = true;
	n = atomic_load_explicit(&s->lent, memory_order_relaxed) ? reclaim(s, &p) : 0;
	if (n)
		pno_count(splices_fetched);
	s->rx_read -= n;
	s->rx_next = s->rx_tail ? s->rx_tail->off + s->rx_tail->len : s->rx_read;
	atomic_store_explicit(&s->lent, 0, memory_order_relaxed);
	s->rx_told = s->rx_read;
	pno_sock_record(s, s->qp, (struct pno_record){
		.op = PNO_OP_HOLD, .sock = s->handle, .ack = s->rx_read }, NULL);
	/* Of what was told to be there one byte shows that the rest comes. */
	if ((n && !fill(s, p, n)) || (end != s->rx_read && !await(s, s->rx_read + 1)) ||
	    (s->state == PNO_DEAD && !await(s, end)))
		return false;
	if (unlikely(atomic_load_explicit(&s->ses->lost, memory_order_relaxed)) && !is_here(s, end))
		s->rx_read = s->rx_next = end;
	s->hold = s->settling = false;
	s->relays = 0;
	s->patience = s->patience < MAX_PATIENCE / 2 ? 2 * s->patience : MAX_PATIENCE;
	pno_sock_refresh(s);
	pno_sock_ack(s, false);
	return true;
}

void pno_pipe_fetch(struct pno_pipe *p)
{
	struct pno_sock *s;
	uint32_t generation;

	pno_lock(&p->lock);
	s = p->len ? p->feeder : NULL;
	generation = p->generation;
	pno_unlock(&p->lock);
	if (!s)
		return;
	pno_lock(&s->lock);
	if (s->generation == generation)
		pno_relay_fetch(s);
	pno_sock_unlock(s);
}

const char *pno_relay_held(struct pno_sock *s, const struct pno_record *r)
{
	int32_t n = r->seq - (uint32_t)s->rx_next;

	if (!s->hold || s->settling || r->flags != s->hold_generation || n < 0)
		return NULL;
	if (s->rx_next + n - pno_sock_consumed(s) > (uint64_t)s->ses->rx_window + PNO_MOVE_WINDOW)
		return "more on hold than may be";
	s->rx_next += n;
	return NULL;
}

static uint32_t room(struct pno_pipe *p)
{
	int rc = -1;

	if (likely(p->size))
		return p->size;
	if (!p->sized)
		rc = real.fcntl(p->fd[1], F_SETPIPE_SZ, MAX_PIPE);
	if (rc <= 0)
		rc = real.fcntl(p->fd[1], F_GETPIPE_SZ);
	p->size = rc > 0 ? rc : 0;
	return p->size;
}

/* Notes in the pipe what of the socket's it has; both locked. */
static ssize_t note(struct pno_sock *s, struct pno_pipe *p, size_t len)
{
	uint64_t n = pno_sock_unread(s), free;

	if (p->len && (p->feeder != s || p->generation != s->generation))
		return PNO_RELAY_NO;
	free = room(p);
	free = free > p->len && !p->real ? free - p->len : 0;
	if (n > free)
		n = free;
	if (n > len)
		n = len;
	if (!n)
		return -EAGAIN; /* full */
	if (!p->len) {
		p->off = s->rx_read;
		p->feeder = s;
		p->generation = s->generation;
		p->ses = s->ses;
		p->shard = s->shard;
		p->handle = s->handle;
	}
	p->len += n;
	s->rx_read += n;
	atomic_fetch_add_explicit(&s->lent, n, memory_order_relaxed);
	return n;
}

ssize_t pno_relay_in(int in, int pipe, size_t len, bool wait)
{
	struct pno_sock *s = pno_sock_lock(in);
	bool looked = false;
	struct pno_pipe *p;
	ssize_t rc;

	if (!s)
		return PNO_RELAY_NO;
	for (;;) {
		if (!s->hold || s->settling || !s->nonblock || s->rx_head ||
		    atomic_load_explicit(&s->ses->lost, memory_order_relaxed)) {
			rc = PNO_RELAY_NO;
			break;
		}
		if (pno_sock_unread(s)) {
			p = pno_pipe_lock(pipe, 1);
			rc = p ? note(s, p, len) : PNO_RELAY_NO;
			if (p)
				pno_unlock(&p->lock);
			if (rc == -EAGAIN && wait)
				rc = PNO_RELAY_NO; /* for room in the pipe */
			break;
		}
		if (looked) {
			rc = pno_sock_instead(s);
			rc = rc > 0 ? -EAGAIN : rc;
			break;
		}
		looked = true;
		if (!pno_sock_look(s)) {
			rc = -EBADF;
			break;
		}
	}
	pno_sock_refresh(s);
	pno_sock_unlock(s);
	return rc;
}

/* How much may be moved: the DPU keeps it, so it may be more than is sent. */
static uint64_t move_window(const struct pno_sock *s)
{
	uint64_t out = s->tx_sent - s->tx_acked, window = pno_sock_tx_window(s);

	if (!s->more->tx_limit && window < PNO_MOVE_WINDOW)
		window = PNO_MOVE_WINDOW;
	return out < window ? window - out : 0;
}

/* One Move of what is in the pipe: bytes or -EAGAIN. Socket locked. */
static ssize_t move(struct pno_sock *s, int pipe, size_t len)
{
	struct pno_move_req m = { 0 };
	struct pno_qp *q = s->qp;
	uint64_t window = move_window(s);
	uint32_t n = sizeof m;
	struct pno_pipe *p;
	uint8_t *to;

	if (!window) {
		pno_count(tx_window_full);
		return -EAGAIN;
	}
	pno_lock(&q->tx_lock);
	to = pno_qp_reserve(q, &n, n, true);
	if (!to)
		pno_sock_want_space(s, q);
	p = to ? pno_pipe_lock(pipe, 0) : NULL;
	if (p) {
		m.len = p->len < len ? p->len : len;
		if (m.len > window)
			m.len = window;
		m.from = p->handle;
		m.off = p->off;
		p->off += m.len;
		p->len -= m.len;
		/* What the DPU is told to be consumed before it sees the Move, it
		 * waits for. */
		if (m.len)
			atomic_fetch_sub_explicit(&p->feeder->lent, m.len, memory_order_relaxed);
		pno_unlock(&p->lock);
	}
	if (m.len) {
		memcpy(to, &m, sizeof m);
		pno_qp_commit(q, (struct pno_record){ .op = PNO_OP_MOVE, .len = sizeof m, .sock = s->handle,
						      .seq = s->tx_sent, .ack = pno_sock_consumed(s) });
		s->tx_sent += m.len;
		s->moved = true;
		s->rx_told = pno_sock_consumed(s);
		pno_qp_publish(q);
	}
	pno_unlock(&q->tx_lock);
	return m.len ? (ssize_t)m.len : -EAGAIN;
}

/* A connection that what the pipe has can be moved to. */
static bool reaches(const struct pno_sock *s, const struct pno_session *ses, unsigned shard)
{
	return s->state == PNO_OPEN && s->nonblock && s->ses == ses && s->shard == shard &&
	       !atomic_load_explicit(&s->ses->lost, memory_order_relaxed);
}

/* Socket locked on entry, unlocked on return. */
static ssize_t out_of(int pipe, struct pno_sock *s, size_t len)
{
	ssize_t rc;

	/* As any sender, it must learn of a reset. */
	if ((s->sent_blind && pno_qp_moved(s->qp)) || !move_window(s))
		if (!pno_sock_look(s)) {
			pno_sock_unlock(s);
			return -EBADF;
		}
	s->sent_blind = true;
	if (s->state != PNO_OPEN || s->err || s->shut_wr)
		return pno_sock_from_pipe(s, pipe, len); /* says why not */
	rc = move(s, pipe, len);
	pno_sock_refresh(s);
	if (rc > 0) {
		pno_count(calls_tx);
		pno_count_add(bytes_spliced, rc);
	}
	pno_sock_unlock(s);
	return rc;
}

ssize_t pno_relay_out(int pipe, int out, size_t len, bool wait)
{
	struct pno_pipe *p = pno_pipe_lock(pipe, 0);
	struct pno_session *ses;
	struct pno_sock *s;
	unsigned shard;
	uint64_t there;
	int64_t real_bytes;

	if (!p)
		return PNO_RELAY_NO;
	there = p->len;
	real_bytes = p->real;
	ses = p->ses;
	shard = p->shard;
	pno_unlock(&p->lock);
	if (!there && !real_bytes && wait) {
		/* Who waits for the kernel's pipe does not hear of what is virtual. */
		pno_pipe_leave(p);
		return PNO_RELAY_NO;
	}
	if (!there)
		return real_bytes ? PNO_RELAY_NO : -EAGAIN;
	s = pno_sock_lock(out);
	if (s && reaches(s, ses, shard))
		return out_of(pipe, s, len);
	if (s)
		pno_sock_unlock(s);
	pno_pipe_fetch(p);
	return PNO_RELAY_NO;
}

void pno_relay_fed(int in, int pipe, size_t n)
{
	struct pno_sock *s = pno_sock_peek(in);
	struct pno_pipe *p = pno_pipe_lock(pipe, 1);

	if (p) {
		bool same = s && p->feeder == s && p->generation == s->generation;

		if (s && !s->shared) {
			if (s->relayed != (uint32_t)(s->rx_read - n))
				s->relays = 0;
			s->relayed = s->rx_read;
		}
		if (s && !p->real) {
			p->feeder = s;
			p->generation = s->generation;
		} else if (!same) {
			p->feeder = NULL;
		}
		p->real += n;
		pno_unlock(&p->lock);
	}
	if (s)
		pno_sock_unlock(s);
}

static bool may_hold(const struct pno_sock *s, const struct pno_session *ses, unsigned shard)
{
	return s->state == PNO_OPEN && s->ses == ses && s->shard == shard && (ses->features & PNO_FEATURE_SPLICE) &&
	       s->nonblock && !s->shared && !s->away && !s->claiming && !s->shut_rd && !s->hold && s->rcvlowat <= 1 &&
	       !atomic_load(&stopped);
}

/* Another relay of the feeder's bytes. Socket locked. Those that a read took in
 * between make it the first again. */
static void relayed(struct pno_sock *s, const struct pno_session *ses, unsigned shard)
{
	if (!may_hold(s, ses, shard))
		return;
	if (!s->patience)
		s->patience = PATIENCE;
	if (++s->relays < s->patience)
		return;
	s->hold = true;
	s->hold_generation++;
	s->rx_told = s->rx_read;
	pno_sock_record(s, s->qp, (struct pno_record){
		.op = PNO_OP_HOLD, .flags = PNO_FLAG_HOLD_ON, .sock = s->handle, .seq = s->hold_generation,
		.ack = s->rx_read }, NULL);
}

void pno_relay_passed(int pipe, int out, size_t n)
{
	struct pno_pipe *p = pno_pipe_lock(pipe, 0);
	struct pno_sock *from, *s;
	struct pno_session *ses;
	uint32_t generation;
	unsigned shard;

	if (!p)
		return;
	p->real -= n;
	from = p->feeder;
	generation = p->generation;
	pno_unlock(&p->lock);
	s = from ? pno_sock_peek(out) : NULL;
	if (!s)
		return;
	ses = s->state == PNO_OPEN ? s->ses : NULL;
	shard = s->shard;
	pno_sock_unlock(s);
	if (!ses)
		return;
	pno_lock(&from->lock);
	if (from->generation == generation)
		relayed(from, ses, shard);
	pno_sock_unlock(from);
}

static void stop(struct pno_sock *s, void *arg)
{
	(void)arg;
	pno_lock(&s->lock);
	if (s->hold)
		pno_relay_fetch(s);
	pno_sock_unlock(s);
}

void pno_relay_stop(void)
{
	atomic_fetch_add(&stopped, 1);
	pno_sock_each(stop, NULL);
	pno_pipe_leave_all();
}

void pno_relay_resume(void)
{
	atomic_fetch_sub(&stopped, 1);
}

void pno_relay_child(void)
{
	atomic_store(&stopped, 0);
	pno_pipe_child_locks();
}
