/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Sending datagrams: a header and the program's bytes into the ring of one
 * shard, one copy. Datagrams to one destination take one shard, so that they
 * keep their order; different destinations are spread.
 *
 * A datagram is sent whole or not at all. It needs room in its leg's window and
 * in the ring; there is no answer to it, what goes wrong on the wire comes
 * later as the socket's error.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "fault.h"
#include "memory.h"
#include "real.h"
#include "stats.h"
#include "udp.h"
#include "wait.h"

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif

/* Headers of a datagram's packet. */
#define OVERHEAD4 28u
#define OVERHEAD6 48u

/* Where a destination's datagrams go. */
static unsigned leg_of(const struct pno_sock *s, const struct pno_addr *to)
{
	uint32_t h = to->port;

	if (s->udp->legs == 1)
		return 0;
	for (unsigned i = 0; i < sizeof to->ip; i++)
		h = h * 31 + to->ip[i];
	return (h ^ h >> 16) % s->udp->legs;
}

static int as_int(const struct cmsghdr *c, int *v)
{
	if (c->cmsg_len == CMSG_LEN(sizeof *v)) {
		memcpy(v, CMSG_DATA(c), sizeof *v);
		return 0;
	}
	if (c->cmsg_len == CMSG_LEN(1) && c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_TOS) {
		*v = *CMSG_DATA(c);
		return 0;
	}
	return EINVAL;
}

static void set_local(struct pno_dgram *h, const struct in6_addr *a)
{
	if (IN6_IS_ADDR_UNSPECIFIED(a))
		return;
	if (IN6_IS_ADDR_V4MAPPED(a)) {
		h->local.family = 4;
		memcpy(h->local.ip, a->s6_addr + 12, 4);
	} else {
		h->local.family = 6;
		memcpy(h->local.ip, a, 16);
	}
}

static int take_pktinfo(struct pno_dgram *h, const struct cmsghdr *c)
{
	struct in_pktinfo i;

	if (c->cmsg_len != CMSG_LEN(sizeof i))
		return EINVAL;
	memcpy(&i, CMSG_DATA(c), sizeof i);
	if (i.ipi_spec_dst.s_addr) {
		h->local.family = 4;
		memcpy(h->local.ip, &i.ipi_spec_dst, 4);
	}
	return 0;
}

static int take_pktinfo6(struct pno_dgram *h, const struct cmsghdr *c)
{
	struct in6_pktinfo i;

	if (c->cmsg_len < CMSG_LEN(sizeof i))
		return EINVAL;
	memcpy(&i, CMSG_DATA(c), sizeof i);
	set_local(h, &i.ipi6_addr);
	return 0;
}

static int take_mark(struct pno_dgram *h, const struct cmsghdr *c, bool tos)
{
	int v = 0, err = as_int(c, &v);

	if (err)
		return err;
	if (v == -1 && c->cmsg_level == IPPROTO_IPV6)
		return 0; /* the socket's own */
	if (v < 0 || v > 255 || (!tos && !v && c->cmsg_level == IPPROTO_IP))
		return EINVAL;
	if (tos) {
		h->flags |= PNO_DGRAM_TOS;
		h->tos = v;
	} else {
		h->flags |= PNO_DGRAM_TTL;
		h->ttl = v;
	}
	return 0;
}

static int take_control(struct pno_dgram *h, const struct cmsghdr *c)
{
	switch (c->cmsg_level) {
	case IPPROTO_IP:
		if (c->cmsg_type == IP_PKTINFO)
			return take_pktinfo(h, c);
		if (c->cmsg_type == IP_TOS || c->cmsg_type == IP_TTL)
			return take_mark(h, c, c->cmsg_type == IP_TOS);
		break;
	case IPPROTO_IPV6:
		if (c->cmsg_type == IPV6_PKTINFO)
			return take_pktinfo6(h, c);
		if (c->cmsg_type == IPV6_TCLASS || c->cmsg_type == IPV6_HOPLIMIT)
			return take_mark(h, c, c->cmsg_type == IPV6_TCLASS);
		break;
	case IPPROTO_UDP:
		if (c->cmsg_type != UDP_SEGMENT || c->cmsg_len != CMSG_LEN(sizeof h->segment))
			return EINVAL;
		memcpy(&h->segment, CMSG_DATA(c), sizeof h->segment);
		return 0;
	default:
		return 0; /* nobody's: passed over, by the kernel too */
	}
	return EINVAL;
}

/* A source address that is not the DPU's is refused at once, as the kernel
 * does: the DPU is asked, once an address. */
static int check_source(struct pno_sock *s, const struct pno_addr *local)
{
	struct pno_udp *u = s->udp;
	struct pno_opt_val v = { .level = IPPROTO_IP, .name = IP_PKTINFO, .len = sizeof *local };
	struct pno_call call;
	int err;

	if (likely(u->src.family == local->family && !memcmp(u->src.ip, local->ip, sizeof local->ip)))
		return 0;
	if (s->state != PNO_DGRAM)
		return 0; /* it is asked when it is known whose the socket is */
	memcpy(v.val, local, sizeof *local);
	err = pno_sock_ask(s, pno_udp_qp(s, 0), (struct pno_record){
		.op = PNO_OP_GET_OPT, .len = sizeof v, .sock = u->leg[0].handle }, &v, &call);
	if (!err)
		s->udp->src = *local;
	return err;
}

/* Control messages, and what they leave open. 0 or an errno. */
static int take_controls(const struct pno_sock *s, struct pno_dgram *h, const struct msghdr *m)
{
	_Alignas(struct cmsghdr) char buf[512];
	struct msghdr copy = { .msg_control = buf, .msg_controllen = m->msg_controllen };
	int err = 0;

	h->segment = s->udp->segment;
	if (likely(!m->msg_control || !m->msg_controllen))
		return 0;
	if (m->msg_controllen > sizeof buf)
		return ENOBUFS;
	if (!pno_copy(buf, m->msg_control, m->msg_controllen))
		return EFAULT;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&copy); c && !err; c = CMSG_NXTHDR(&copy, c)) {
		if (c->cmsg_len < sizeof *c || c->cmsg_len > (size_t)(buf + copy.msg_controllen - (char *)c))
			return EINVAL;
		err = take_control(h, c);
	}
	return err;
}

/* The destination, if one is named. 0 or an errno. */
static int take_name(const struct pno_sock *s, struct pno_addr *to, const struct msghdr *m)
{
	const struct sockaddr *sa = m->msg_name;
	struct sockaddr_in in;
	int err;

	if (s->domain == AF_INET6) {
		err = pno_addr_from(sa, m->msg_namelen, to);
		return err || !to->port ? EINVAL : 0;
	}
	if (m->msg_namelen < sizeof in)
		return EINVAL;
	memcpy(&in, sa, sizeof in);
	if (in.sin_family == AF_UNSPEC)
		in.sin_family = AF_INET; /* the kernel takes it for that */
	if (in.sin_family != AF_INET)
		return EAFNOSUPPORT;
	err = pno_addr_from((struct sockaddr *)&in, sizeof in, to);
	return err || !to->port ? EINVAL : 0;
}

/* IPv6 takes an address of no family for none. */
static bool names_somebody(const struct pno_sock *s, const struct msghdr *m)
{
	const struct sockaddr *sa = m->msg_name;

	return sa && m->msg_namelen &&
	       (s->domain == AF_INET || m->msg_namelen < offsetof(struct sockaddr, sa_data) || sa->sa_family != AF_UNSPEC);
}

/* The last datagram to this destination could not be sent: 0, or why. Once, so
 * that another attempt is made. */
static int check_past(struct pno_udp *u, const struct pno_addr *to)
{
	int err = u->bad_err;

	if (likely(!err) || u->bad.port != to->port || u->bad.family != to->family ||
	    memcmp(u->bad.ip, to->ip, sizeof to->ip))
		return 0;
	u->bad_err = 0;
	return err;
}

/* 0, or why a datagram of this length cannot be sent: EMSGSIZE, EINVAL. */
static int check_length(const struct pno_sock *s, const struct pno_dgram *h, const struct pno_addr *to, size_t len)
{
	bool v6 = to->family == 6;
	size_t most = v6 ? PNO_MAX_DGRAM : PNO_MAX_DGRAM - 20;
	size_t each = h->segment && h->segment < len ? h->segment : len;
	uint32_t overhead = v6 ? OVERHEAD6 : OVERHEAD4;

	if (len > most)
		return EMSGSIZE;
	if (h->segment && (len + h->segment - 1) / h->segment > PNO_MAX_SEGMENTS)
		return EINVAL;
	if ((s->udp->df || h->segment) && each + overhead > s->udp->mtu)
		return h->segment ? EINVAL : EMSGSIZE;
	if (PNO_FRAME(len) > s->ses->tx_window / 4 * 3 || !pno_qp_could_hold(s->qp, PNO_FRAME(len)))
		return EMSGSIZE;
	return 0;
}

/* False: the program's memory is not there. */
static bool gather(uint8_t *to, const struct msghdr *m, size_t from, size_t n)
{
	for (size_t i = 0; i < m->msg_iovlen && n; i++) {
		const struct iovec *v = &m->msg_iov[i];
		size_t k;

		if (from >= v->iov_len) {
			from -= v->iov_len;
			continue;
		}
		k = v->iov_len - from < n ? v->iov_len - from : n;
		if (unlikely(!pno_copy(to, (char *)v->iov_base + from, k)))
			return false;
		to += k;
		n -= k;
		from = 0;
	}
	return true;
}

static bool all_readable(const struct msghdr *m)
{
	for (size_t i = 0; i < m->msg_iovlen; i++)
		if (!pno_readable(m->msg_iov[i].iov_base, m->msg_iov[i].iov_len))
			return false;
	return true;
}

/*
 * Writes the records of a frame: 0, EAGAIN (the ring has no room for them now)
 * or EFAULT. A frame of several records is begun only if all of the program's
 * memory is there; what another thread takes away meanwhile goes out as it is.
 */
static int write_frame(struct pno_sock *s, unsigned leg, const struct pno_dgram *h, const struct msghdr *m)
{
	struct pno_leg *l = &s->udp->leg[leg];
	struct pno_qp *q = pno_udp_qp(s, leg);
	size_t total = PNO_FRAME(h->len), done = 0;
	int err = 0;

	if (unlikely(total > PNO_MAX_PAYLOAD && !all_readable(m)))
		return EFAULT;
	pno_lock(&q->tx_lock);
	if (!pno_qp_fits(q, total)) {
		pno_sock_want_space(s, q);
		err = EAGAIN;
	}
	while (!err && done < total) {
		uint32_t n = total - done < PNO_MAX_PAYLOAD ? total - done : PNO_MAX_PAYLOAD;
		uint32_t head = done ? 0 : sizeof *h;
		uint8_t *to = pno_qp_reserve(q, &n, n, false);

		if (head)
			memcpy(to, h, sizeof *h);
		if (unlikely(!gather(to + head, m, done + head - sizeof *h, n - head)) && total <= PNO_MAX_PAYLOAD) {
			err = EFAULT;
			break;
		}
		pno_qp_commit(q, (struct pno_record){
			.op = PNO_OP_SEND_DGRAM, .flags = done + n < total ? PNO_FLAG_PART : 0,
			.len = n, .sock = l->handle, .seq = l->tx_sent, .ack = l->rx_read });
		l->tx_sent += n;
		done += n;
	}
	if (likely(!err)) {
		l->rx_told = l->rx_read;
		pno_qp_publish(q);
	}
	pno_unlock(&q->tx_lock);
	return err;
}

/* No room: looks at the rings once more, then waits. 0 or -errno. */
static int wait_room(struct pno_sock *s, bool nowait, bool *looked, int64_t *deadline)
{
	uint32_t generation = s->generation;
	int rc;

	if (!*looked) {
		struct pno_chan *c = s->qp->chan;

		*looked = true;
		pno_unlock(&s->lock);
		pno_chan_drain(c);
		pno_lock(&s->lock);
		return s->generation == generation ? 0 : -EBADF;
	}
	pno_count(tx_window_full);
	if (nowait)
		return -EAGAIN;
	if (!*deadline)
		*deadline = pno_deadline_within(s->snd_millis);
	rc = pno_sock_wait(s, EPOLLOUT, *deadline);
	*looked = false;
	return rc;
}

/*
 * On the kernel's loopback a datagram that nobody takes is refused by the time
 * send returns, and programs that talk to themselves rely on the next call's
 * saying so. So a send to a loopback peer waits for what the DPU makes of it,
 * by a question behind it, until one has not been refused. The peer that goes
 * later is noticed a moment later, as one on the wire.
 */
static void find_out(struct pno_sock *s, unsigned leg)
{
	struct pno_addr local = pno_sock_local(s);
	struct pno_opt_val v = { .level = IPPROTO_IP, .name = IP_PKTINFO, .len = sizeof local };
	struct pno_call call;

	memcpy(v.val, &local, sizeof local);
	if (pno_sock_ask(s, pno_udp_qp(s, leg), (struct pno_record){
		    .op = PNO_OP_GET_OPT, .len = sizeof v, .sock = s->udp->leg[leg].handle }, &v, &call) != EBADF)
		s->udp->doubt = s->err;
}

static ssize_t send_frame(struct pno_sock *s, unsigned leg, const struct pno_dgram *h, const struct msghdr *m, int flags)
{
	bool nowait = s->nonblock || (flags & MSG_DONTWAIT);
	struct pno_leg *l = &s->udp->leg[leg];
	bool looked = false;
	int64_t deadline = 0;
	int rc;

	for (;;) {
		if (s->err) {
			rc = -s->err;
			s->err = 0;
			pno_sock_refresh(s);
			return rc;
		}
		if (s->udp->lost)
			return -ENETDOWN;
		if (s->shut_wr)
			return -EPIPE;
		s->udp->need = PNO_FRAME(h->len);
		if (!s->away && l->tx_sent - l->tx_acked + s->udp->need <= s->ses->tx_window) {
			rc = write_frame(s, leg, h, m);
			if (!rc)
				break;
			if (rc == EFAULT)
				return -EFAULT;
		}
		pno_sock_refresh(s);
		if (unlikely(s->common) && !looked) {
			pno_share_attune(s);
			nowait = s->nonblock || (flags & MSG_DONTWAIT);
		}
		rc = wait_room(s, nowait, &looked, &deadline);
		if (rc < 0)
			return rc;
	}
	s->udp->need = 0;
	s->udp->used = true;
	pno_sock_refresh(s);
	pno_count(calls_tx);
	pno_count_add(bytes_tx, h->len);
	if (unlikely(s->udp->doubt))
		find_out(s, leg);
	return h->len;
}

/* What needs no ring: 0 (go on), or what sendmsg returns. Sets the header but
 * for its length. */
static int prepare(struct pno_sock *s, struct pno_dgram *h, const struct msghdr *m, struct pno_addr *to, int flags)
{
	int err;

	memset(h, 0, sizeof *h);
	if ((flags & MSG_OOB) && s->domain == AF_INET) { /* IPv6 does not look at it */
		pno_count(calls_refused);
		return EOPNOTSUPP;
	}
	if (names_somebody(s, m)) {
		err = take_name(s, to, m);
		if (err)
			return err;
		h->peer = *to;
	} else if (s->state == PNO_DGRAM && !s->peer.family) {
		return EDESTADDRREQ;
	} else {
		*to = pno_sock_peer(s);
	}
	return take_controls(s, h, m);
}

/* The datagram, of what is corked and what comes now. Sends it, or keeps it
 * for more. Bytes or -errno. */
static ssize_t finish(struct pno_sock *s, struct pno_dgram *h, const struct pno_addr *to, const struct msghdr *m,
		      size_t corked, size_t len, int flags)
{
	struct iovec whole;
	struct msghdr all = { .msg_iov = &whole, .msg_iovlen = 1 };
	struct pno_cork *cork = NULL;
	int err = unlikely(s->udp->only_v6 && to->family == 4) ? ENETUNREACH : check_length(s, h, to, corked + len);
	ssize_t rc;

	if (!err)
		err = check_past(s->udp, to);
	if (!err && unlikely(h->local.family))
		err = check_source(s, &h->local);
	if (!err && unlikely((flags & MSG_MORE) || s->udp->cork))
		err = pno_udp_cork(s, h, to, m);
	if (unlikely(err)) {
		pno_udp_cork_drop(s);
		return -err;
	}
	if (unlikely(flags & MSG_MORE))
		return len;
	if (unlikely(s->udp->cork)) {
		cork = pno_udp_cork_take(s, &whole);
		m = &all;
	}
	h->len = corked + len;
	rc = send_frame(s, leg_of(s, to), h, m, flags);
	pno_free(cork);
	return rc < 0 ? rc : (ssize_t)len;
}

ssize_t pno_udp_send(struct pno_sock *s, int fd, const struct msghdr *m, int flags)
{
	struct pno_dgram h;
	struct pno_addr to = { 0 };
	size_t len = 0, corked = 0;
	bool named = names_somebody(s, m);
	ssize_t rc;
	int err = 0;

	for (size_t i = 0; i < m->msg_iovlen; i++)
		len += m->msg_iov[i].iov_len;
	if (unlikely(s->udp->lost) && (err = pno_udp_revive(s, fd))) {
		pno_sock_unlock(s);
		return -err;
	}
	if (unlikely(s->udp->cork)) {
		corked = pno_udp_corked(s, &h, &to);
		named = false;
		err = (flags & MSG_OOB) && s->domain == AF_INET ? EOPNOTSUPP : 0;
	} else {
		err = s->state == PNO_FRESH && !named ? -1 : prepare(s, &h, m, &to, flags);
	}
	if (err && s->state == PNO_FRESH) {
		/* What is wrong with it, the kernel knows best. It may bind first. */
		s->kernel_bound = true;
		pno_sock_unlock(s);
		rc = real.sendmsg(fd, m, flags);
		return rc < 0 ? -errno : rc;
	}
	if (!err && named && pno_udp_way(s, fd, &to, &err) == PNO_WAY_KERNEL) {
		rc = real.sendmsg(fd, m, flags);
		return rc < 0 ? -errno : rc;
	}
	rc = err ? -err : finish(s, &h, &to, m, corked, len, flags);
	pno_sock_unlock(s);
	return rc;
}
