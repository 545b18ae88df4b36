/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Receiving datagrams: records into the socket's list, and from there into the
 * program's buffers, with the control messages that it asked for.
 *
 * A frame lies in the ring, where the DPU may change it at any time. Its length
 * is the record's, checked when it came and kept in private memory; the header
 * is copied before it is looked at, and no value of it can do harm.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <stdlib.h>
#include <string.h>

#include "fault.h"
#include "memory.h"
#include "real.h"
#include "stats.h"
#include "udp.h"
#include "wait.h"

static void tx_ack(struct pno_leg *l, uint32_t ack)
{
	uint32_t n = ack - (uint32_t)l->tx_acked;

	if ((int32_t)n > 0 && n <= l->tx_sent - l->tx_acked)
		l->tx_acked += n;
}

static uint32_t frame_len(const uint8_t *payload)
{
	struct pno_dgram h;

	memcpy(&h, payload, sizeof h);
	__asm__ volatile("" : "+m"(h));
	return h.len > PNO_MAX_DGRAM ? 0 : PNO_FRAME(h.len);
}

static void arrived(struct pno_sock *s, struct pno_seg *g, unsigned leg)
{
	g->sock = s;
	g->shard = leg;
	pno_rx_append(s, g);
	s->udp->used = true;
	pno_sock_event(s, EPOLLIN | EPOLLRDNORM);
}

/* A record of a datagram that needs several. They come one after the other. */
static const char *add_part(struct pno_sock *s, unsigned leg, const struct pno_record *r, const uint8_t *payload)
{
	struct pno_leg *l = &s->udp->leg[leg];
	struct pno_seg *g = l->part;

	if (!g) {
		uint32_t len = r->len >= PNO_FRAME(0) ? frame_len(payload) : 0;

		if (!len)
			return "malformed datagram";
		g = pno_calloc(1, sizeof *g + len);
		if (!g)
			return "no memory for a datagram";
		g->data = (const uint8_t *)(g + 1);
		g->len = len;
		atomic_store_explicit(&g->state, PNO_SEG_PRIVATE, memory_order_relaxed);
		l->part = g;
		l->part_have = 0;
	}
	if (r->len > g->len - l->part_have)
		return "datagram longer than it said";
	memcpy((uint8_t *)(g + 1) + l->part_have, payload, r->len);
	l->part_have += r->len;
	if (r->flags & PNO_FLAG_PART)
		return NULL;
	if (l->part_have != g->len)
		return "datagram shorter than it said";
	g->off = l->rx_next - g->len;
	l->part = NULL;
	arrived(s, g, leg);
	return NULL;
}

const char *pno_udp_dgram(struct pno_sock *s, struct pno_qp *q, const struct pno_record *r,
			  const uint8_t *payload, uint64_t start)
{
	struct pno_leg *l;
	struct pno_seg *g;
	uint64_t off;

	if (!s->udp)
		return "datagram for a connection";
	l = &s->udp->leg[q->shard];
	tx_ack(l, r->ack);
	off = l->rx_next + (int32_t)(r->seq - (uint32_t)l->rx_next);
	if ((int64_t)(off + r->len - l->rx_told) > (int64_t)s->ses->rx_window + PNO_MAX_PAYLOAD)
		return "datagram beyond the receive window";
	if ((int64_t)(off + r->len - l->rx_next) > 0)
		l->rx_next = off + r->len;
	if (l->part || (r->flags & PNO_FLAG_PART))
		return add_part(s, q->shard, r, payload);
	if (r->len < PNO_FRAME(0) || frame_len(payload) != r->len)
		return "malformed datagram";
	g = pno_qp_hold(q, start);
	if (unlikely(!g)) {
		l->rx_read += r->len; /* lost */
		return NULL;
	}
	g->data = payload;
	g->off = off;
	g->len = r->len;
	g->drain = q->chan->drains;
	arrived(s, g, q->shard);
	return NULL;
}

/* What another process has read meanwhile is not ours to read again. */
static void drop_stale(struct pno_sock *s, unsigned leg, uint64_t read)
{
	struct pno_seg *g, *next;

	for (g = s->rx_head; g; g = next) {
		next = g->next;
		if (g->shard == leg && (int64_t)(g->off + g->len - read) <= 0)
			pno_rx_drop(s, g);
	}
}

/* Also unasked: the process that had the socket is gone. */
static void on_claimed(struct pno_sock *s, struct pno_qp *q, const struct pno_record *r, struct pno_drain *d)
{
	unsigned leg = q->shard;
	struct pno_leg *l = &s->udp->leg[leg];
	bool away = false, claiming = false, asked = l->claiming, was_here = !l->stranger && !l->away;
	uint32_t before = atomic_load_explicit(&s->mask, memory_order_relaxed), news;

	if (l->stranger) {
		l->rx_next = l->rx_read = l->rx_told = r->seq;
		l->tx_sent = l->tx_acked = r->ack;
		l->stranger = l->away = false;
	} else if (l->away) {
		uint64_t read = l->rx_next + (int32_t)(r->seq - (uint32_t)l->rx_next);

		drop_stale(s, leg, read);
		if ((int64_t)(read - l->rx_read) > 0)
			l->rx_read = read;
		if ((int64_t)(l->rx_read - l->rx_next) > 0)
			l->rx_next = l->rx_read;
		l->rx_told = l->rx_read;
		l->tx_sent += (int32_t)(r->ack - (uint32_t)l->tx_sent);
		l->tx_acked = l->tx_sent;
		l->away = false;
	} else {
		tx_ack(l, r->ack);
		d->also |= l->former;
	}
	l->claiming = false;
	l->former = 0;
	for (unsigned i = 0; i < s->udp->legs; i++) {
		away |= s->udp->leg[i].away;
		claiming |= s->udp->leg[i].claiming;
	}
	s->away = away;
	s->claiming = claiming;
	if (unlikely(!asked && s->qp->chan != q->chan))
		pno_udp_claim(s, s->qp->chan); /* here it is waited for */
	pno_sock_refresh(s);
	news = atomic_load_explicit(&s->mask, memory_order_relaxed) & ~before;
	pno_sock_tell(s, was_here ? news : EPOLLIN | EPOLLRDNORM | EPOLLOUT | EPOLLWRNORM);
}

const char *pno_udp_record(struct pno_sock *s, struct pno_qp *q, const struct pno_record *r, const uint8_t *payload,
			   struct pno_drain *d)
{
	struct pno_leg *l = &s->udp->leg[q->shard];

	switch (r->op) {
	case PNO_OP_TX_ACK:
		tx_ack(l, r->ack);
		pno_sock_event(s, EPOLLOUT | EPOLLWRNORM);
		return NULL;
	case PNO_OP_ERROR:
		if (!r->seq || r->seq >= 4096)
			return "error without a number";
		if (r->len >= sizeof s->udp->bad) { /* of a datagram to somebody */
			memcpy(&s->udp->bad, payload, sizeof s->udp->bad);
			s->udp->bad_err = r->seq;
			return NULL;
		}
		s->err = r->seq;
		pno_sock_event(s, EPOLLIN | EPOLLOUT | EPOLLERR);
		return NULL;
	case PNO_OP_CLAIMED:
		on_claimed(s, q, r, d);
		return NULL;
	case PNO_OP_REVOKED:
		l->away = s->away = s->shared = true;
		pno_count(revoked);
		pno_sock_event(s, EPOLLIN | EPOLLOUT);
		return NULL;
	}
	return "record of a connection for a datagram socket";
}

void pno_udp_ack(struct pno_sock *s, unsigned leg, bool now)
{
	struct pno_leg *l = &s->udp->leg[leg];
	uint64_t n = l->rx_read - l->rx_told;

	if (s->state != PNO_DGRAM || !n || (!now && n < s->ses->rx_window / 4))
		return;
	l->rx_told = l->rx_read;
	pno_sock_record(s, pno_udp_qp(s, leg), (struct pno_record){
		.op = PNO_OP_RX_ACK, .sock = l->handle, .ack = l->rx_read }, NULL);
}

/* What fits of a datagram, or -EFAULT. */
static ssize_t scatter(const struct msghdr *m, const uint8_t *data, size_t len)
{
	size_t done = 0;

	for (size_t i = 0; i < m->msg_iovlen && done < len; i++) {
		size_t k = m->msg_iov[i].iov_len < len - done ? m->msg_iov[i].iov_len : len - done;

		if (unlikely(!pno_copy(m->msg_iov[i].iov_base, data + done, k)))
			return -EFAULT;
		done += k;
	}
	return done;
}

/* Control messages on their way to the program: all that a datagram may have
 * fit, and room is what the program gave. */
struct controls {
	size_t used, room;
	bool cut;
	_Alignas(struct cmsghdr) char buf[256];
};

/* Appends one as the kernel does, cutting it if need be. */
static void put_control(struct controls *t, int level, int type, const void *data, size_t len)
{
	struct cmsghdr c = { .cmsg_level = level, .cmsg_type = type, .cmsg_len = CMSG_LEN(len) };
	size_t room = t->room - t->used, space = CMSG_SPACE(len);

	if (room < sizeof c) {
		t->cut = true;
		return;
	}
	if (room < c.cmsg_len) {
		t->cut = true;
		c.cmsg_len = room;
	}
	memset(t->buf + t->used, 0, space);
	memcpy(t->buf + t->used, &c, sizeof c);
	memcpy(t->buf + t->used + CMSG_LEN(0), data, c.cmsg_len - CMSG_LEN(0));
	t->used += space < room ? space : room;
}

static void put_pktinfo6(struct controls *t, const struct pno_dgram *h)
{
	struct in6_pktinfo i = { .ipi6_ifindex = h->index };

	if (h->local.family == 4) {
		i.ipi6_addr.s6_addr[10] = i.ipi6_addr.s6_addr[11] = 0xff;
		memcpy(i.ipi6_addr.s6_addr + 12, h->local.ip, 4);
	} else {
		memcpy(&i.ipi6_addr, h->local.ip, 16);
	}
	put_control(t, IPPROTO_IPV6, IPV6_PKTINFO, &i, sizeof i);
}

/* What the program wants to know of a datagram. */
static void put_controls(const struct pno_udp *u, struct controls *t, const struct pno_dgram *h)
{
	bool v4 = h->local.family == 4;
	int n;

	if (v4 && (u->want & PNO_WANT_PKTINFO)) {
		struct in_pktinfo i = { .ipi_ifindex = h->index };

		memcpy(&i.ipi_addr, h->local.ip, 4);
		i.ipi_spec_dst = i.ipi_addr;
		put_control(t, IPPROTO_IP, IP_PKTINFO, &i, sizeof i);
	}
	if (v4 && (u->want & PNO_WANT_TTL)) {
		n = h->ttl;
		put_control(t, IPPROTO_IP, IP_TTL, &n, sizeof n);
	}
	if (v4 && (u->want & PNO_WANT_TOS))
		put_control(t, IPPROTO_IP, IP_TOS, &h->tos, sizeof h->tos);
	if (u->want & PNO_WANT_PKTINFO6)
		put_pktinfo6(t, h);
	if (!v4 && (u->want & PNO_WANT_HOPLIMIT)) {
		n = h->ttl;
		put_control(t, IPPROTO_IPV6, IPV6_HOPLIMIT, &n, sizeof n);
	}
	if (!v4 && (u->want & PNO_WANT_TCLASS)) {
		n = h->tos;
		put_control(t, IPPROTO_IPV6, IPV6_TCLASS, &n, sizeof n);
	}
}

/* Who sent it, and what else the program asked for. 0 or -EFAULT. */
static int describe(const struct pno_sock *s, struct msghdr *m, const uint8_t *frame)
{
	struct controls t = { .room = m->msg_control ? m->msg_controllen : 0 };
	struct pno_dgram h;

	memcpy(&h, frame, sizeof h);
	__asm__ volatile("" : "+m"(h));
	if (m->msg_name && pno_addr_to(&h.peer, s->domain, m->msg_name, &m->msg_namelen))
		return -EFAULT;
	if (likely(!s->udp->want)) {
		m->msg_controllen = 0;
		return 0;
	}
	s->udp->src = h.local; /* what answers are sent from */
	put_controls(s->udp, &t, &h);
	if (t.cut)
		m->msg_flags |= MSG_CTRUNC;
	m->msg_controllen = t.used;
	return t.used && !pno_copy(m->msg_control, t.buf, t.used) ? -EFAULT : 0;
}

/* Hands the oldest datagram over. One that the program has no memory for is
 * lost to it, as with the kernel. */
static ssize_t deliver(struct pno_sock *s, struct msghdr *m, int flags)
{
	struct pno_seg *g = s->rx_head;
	size_t len = g->len - PNO_FRAME(0);
	unsigned leg = g->shard;
	ssize_t n = scatter(m, g->data + PNO_FRAME(0), len);

	m->msg_flags = 0;
	if (n >= 0 && (size_t)n < len)
		m->msg_flags = MSG_TRUNC;
	if (n >= 0) {
		int err = describe(s, m, g->data);

		if (unlikely(err))
			n = err;
		else if (flags & MSG_TRUNC)
			n = len;
	}
	if (!(flags & MSG_PEEK)) {
		s->udp->leg[leg].rx_read += g->len;
		pno_rx_drop_head(s);
		pno_count(calls_rx);
		pno_count_add(bytes_rx, len);
		pno_sock_refresh(s);
		pno_udp_ack(s, leg, s->shared);
	}
	return n;
}

/* Nothing there: looks at the rings once more, then waits. 0 or -errno. */
static int wait_dgram(struct pno_sock *s, bool nowait, bool *looked, int64_t *deadline)
{
	uint32_t generation = s->generation;

	if (!*looked) {
		struct pno_chan *c = s->qp->chan;

		*looked = true;
		pno_unlock(&s->lock);
		pno_chan_drain(c);
		pno_lock(&s->lock);
		return s->generation == generation ? 0 : -EBADF;
	}
	if (nowait)
		return -EAGAIN;
	if (!*deadline)
		*deadline = pno_deadline_within(s->rcv_millis);
	return pno_sock_wait(s, EPOLLIN, *deadline);
}

/* There is no DPU: it may be back. */
static int wait_revival(struct pno_sock *s, int fd, bool nowait)
{
	struct timespec nap = { .tv_nsec = 100000000 };
	uint32_t generation = s->generation;
	int err = pno_udp_revive(s, fd);

	if (!err || err == EBADF)
		return -err;
	if (nowait)
		return -EAGAIN;
	pno_unlock(&s->lock);
	err = nanosleep(&nap, NULL) < 0 ? -errno : 0;
	pno_lock(&s->lock);
	return s->generation != generation ? -EBADF : err;
}

ssize_t pno_udp_recv(struct pno_sock *s, int fd, struct msghdr *m, int flags)
{
	bool nowait = s->nonblock || (flags & MSG_DONTWAIT), looked = false;
	int64_t deadline = 0;
	ssize_t rc;

	if (s->state == PNO_FRESH) {
		pno_sock_unlock(s);
		rc = real.recvmsg(fd, m, flags);
		return rc < 0 ? -errno : rc;
	}
	if (flags & MSG_ERRQUEUE) {
		pno_sock_unlock(s);
		return -EAGAIN;
	}
	for (;;) {
		rc = -s->err;
		if (rc) {
			s->err = 0;
			pno_sock_refresh(s);
			break;
		}
		if (unlikely(s->udp->lost)) {
			rc = wait_revival(s, fd, nowait);
			if (rc < 0)
				break;
			continue;
		}
		if (s->rx_head && !s->away) {
			rc = deliver(s, m, flags);
			break;
		}
		if (s->shut_rd && !nowait) { /* who does not wait is told nothing */
			m->msg_namelen = m->msg_controllen = m->msg_flags = 0;
			break;
		}
		if (unlikely(s->common) && !looked) {
			pno_share_attune(s);
			nowait = s->nonblock || (flags & MSG_DONTWAIT);
		}
		rc = wait_dgram(s, nowait, &looked, &deadline);
		if (rc < 0)
			break;
	}
	pno_sock_unlock(s);
	return rc;
}
