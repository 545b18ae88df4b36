/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A datagram socket on the shards: opened, aimed at a peer, moved and closed on
 * all of them.
 *
 * Requests wait for the DPU, one shard after the other: the first one chooses
 * what was left open, the others get the same. They are rare, a datagram
 * itself asks nobody.
 */
#include "udp.h"

#include <errno.h>
#include <string.h>

#include "epoll.h"
#include "memory.h"
#include "stats.h"

bool pno_udp_new(struct pno_sock *s)
{
	s->udp = pno_calloc(1, sizeof *s->udp);
	return s->udp;
}

static void drop_parts(struct pno_udp *u)
{
	for (unsigned i = 0; i < PNO_MAX_SHARDS; i++) {
		pno_free(u->leg[i].part);
		u->leg[i].part = NULL;
	}
}

void pno_udp_free(struct pno_sock *s)
{
	drop_parts(s->udp);
	pno_udp_cork_drop(s);
	pno_free(s->udp);
	s->udp = NULL;
}

static void close_legs(struct pno_sock *s)
{
	struct pno_udp *u = s->udp;

	for (unsigned i = 0; i < u->legs; i++)
		pno_sock_record(s, pno_udp_qp(s, i), (struct pno_record){
			.op = PNO_OP_CLOSE, .sock = u->leg[i].handle, .seq = u->leg[i].tx_sent, .ack = u->leg[i].rx_read }, NULL);
}

static void forget_legs(struct pno_sock *s)
{
	struct pno_udp *u = s->udp;

	if (s->ring_full)
		pno_sock_leave_space(s);
	pno_rx_drop_all(s);
	drop_parts(u);
	memset(u->leg, 0, sizeof u->leg);
	u->legs = 0;
	u->used = false;
	memset(&u->fine, 0, sizeof u->fine);
	pno_sock_set_peer(s, &(struct pno_addr){ 0 });
	s->handle = 0;
	s->away = s->claiming = false;
}

/* Takes in what a Reply tells: the names, and the MTU. */
static void learn(struct pno_sock *s, const struct pno_call *c)
{
	struct pno_dgram_info info;

	if (c->len < sizeof info)
		return;
	memcpy(&info, c->payload, sizeof info);
	pno_sock_set_local(s, &info.local);
	pno_sock_set_peer(s, &info.peer);
	s->udp->mtu = info.mtu;
	s->udp->doubt = pno_addr_loopback(&info.peer);
}

/* One request on one shard: Bind if peer is NULL, else Connect, which binds
 * a socket that is not bound yet. */
static int ask_leg(struct pno_sock *s, unsigned leg, uint32_t flags, const struct pno_addr *local,
		   const struct pno_addr *peer)
{
	struct pno_bind_req bind = { .local = *local, .proto = PNO_PROTO_UDP, .flags = flags };
	struct pno_connect_req conn = { .local = *local, .proto = PNO_PROTO_UDP, .flags = flags };
	struct pno_record r = { .op = PNO_OP_BIND, .len = sizeof bind, .sock = s->udp->leg[leg].handle };
	struct pno_call call;
	int err;

	if (peer) {
		conn.peer = *peer;
		r.op = PNO_OP_CONNECT;
		r.len = sizeof conn;
	}
	err = pno_sock_ask(s, pno_udp_qp(s, leg), r, peer ? (void *)&conn : (void *)&bind, &call);
	if (!err && !leg)
		learn(s, &call);
	return err;
}

int pno_udp_open(struct pno_sock *s, int fd, struct pno_session *ses, struct pno_addr local,
		 const struct pno_addr *peer)
{
	struct pno_udp *u = s->udp;
	uint32_t flags = pno_sock_bind_flags(s, fd), generation = s->generation;
	int err = 0;

	if (u->asking)
		return EALREADY;
	s->handle = pno_handle_new(ses, s);
	if (!s->handle)
		return ENOBUFS;
	s->ses = ses;
	s->qp = &pno_thread_chan(ses)->qp[0];
	u->asking = true;
	for (unsigned i = 0; i < ses->shards && !err; i++) {
		u->leg[i].handle = s->handle;
		err = ask_leg(s, i, flags, &local, peer);
		if (s->generation != generation)
			return EBADF; /* closed meanwhile */
		local = pno_sock_local(s);
		if (!err)
			u->legs++;
	}
	u->asking = false;
	if (!err)
		return 0;
	close_legs(s);
	pno_handle_drop(ses, 0, s->handle); /* of the leg that failed, too */
	forget_legs(s);
	if (!u->lost) {
		s->ses = NULL;
		s->qp = NULL;
	}
	return err;
}

int pno_udp_aim(struct pno_sock *s, const struct pno_addr *peer)
{
	struct pno_addr local = { 0 };
	uint32_t generation = s->generation;
	int err = 0;

	if (s->udp->asking)
		return EALREADY;
	s->udp->asking = true;
	for (unsigned i = 0; i < s->udp->legs && !err; i++) {
		err = ask_leg(s, i, 0, &local, peer);
		local = pno_sock_local(s); /* which the first shard has chosen */
		if (s->generation != generation)
			return EBADF;
	}
	s->udp->asking = false;
	return err;
}

void pno_udp_lose(struct pno_sock *s)
{
	struct pno_addr peer = pno_sock_peer(s);

	forget_legs(s);
	pno_sock_set_peer(s, &peer);
	s->udp->lost = true;
	s->kept = false;
	s->cookie = 0;
	pno_sock_event(s, EPOLLOUT | EPOLLWRNORM);
}

uint32_t pno_udp_mask(const struct pno_sock *s)
{
	const struct pno_udp *u = s->udp;
	uint64_t least = s->ses ? s->ses->tx_window / 4 : 0;
	bool room = !s->ring_full;
	uint32_t m = 0;

	/* Who sends or receives brings it home; whether there is anything to
	 * receive, its home knows. */
	if (s->away || u->lost)
		return EPOLLOUT | EPOLLWRNORM;
	if (least < u->need)
		least = u->need;
	for (unsigned i = 0; i < u->legs && room; i++)
		room = u->leg[i].tx_sent - u->leg[i].tx_acked <= s->ses->tx_window - least;
	if (room || s->shut_wr)
		m |= EPOLLOUT | EPOLLWRNORM;
	if (s->rx_head || s->shut_rd)
		m |= EPOLLIN | EPOLLRDNORM;
	if (s->shut_rd)
		m |= EPOLLRDHUP;
	if (s->shut_rd && s->shut_wr)
		m |= EPOLLHUP;
	return m;
}

uint64_t pno_udp_unread(const struct pno_sock *s)
{
	return s->rx_head && s->rx_head->len >= PNO_FRAME(0) ? s->rx_head->len - PNO_FRAME(0) : 0;
}

uint64_t pno_udp_unsent(const struct pno_sock *s)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < s->udp->legs; i++)
		sum += s->udp->leg[i].tx_sent - s->udp->leg[i].tx_acked;
	return sum;
}

void pno_udp_release(struct pno_sock *s)
{
	if (s->ses && s->handle && !atomic_load_explicit(&s->ses->lost, memory_order_relaxed)) {
		close_legs(s);
		for (unsigned i = 0; i < s->udp->legs; i++)
			pno_handle_drop(s->ses, i, s->udp->leg[i].handle);
	}
	forget_legs(s);
}

void pno_udp_claim(struct pno_sock *s, struct pno_chan *c)
{
	struct pno_udp *u = s->udp;
	bool ours = s->qp->chan->ses == c->ses;

	for (unsigned i = 0; i < u->legs; i++) {
		if (ours)
			u->leg[i].former |= 1ull << s->qp->chan->index;
		u->leg[i].claiming = true;
	}
	s->qp = &c->qp[0];
	s->claiming = true;
	pno_count(claims);
	for (unsigned i = 0; i < u->legs; i++)
		pno_sock_record(s, pno_udp_qp(s, i), (struct pno_record){
			.op = PNO_OP_CLAIM, .sock = u->leg[i].handle }, NULL);
	pno_epoll_follow(s);
}

void pno_udp_child(struct pno_sock *s)
{
	for (unsigned i = 0; i < s->udp->legs; i++) {
		s->udp->leg[i].away = true;
		s->udp->leg[i].claiming = false;
		s->udp->leg[i].former = 0;
	}
	s->udp->asking = false;
}

void pno_udp_adopted(struct pno_sock *s)
{
	for (unsigned i = 0; i < s->udp->legs; i++) {
		struct pno_leg *l = &s->udp->leg[i];

		l->rx_told = l->rx_read;
		pno_handle_enter(s->ses, i, l->handle, s);
	}
}

bool pno_udp_inherit(struct pno_sock *s, const struct pno_msg_socket *m)
{
	if (!pno_udp_new(s))
		return false;
	for (unsigned i = 0; i < s->ses->shards; i++) {
		struct pno_leg *l = &s->udp->leg[i];

		l->handle = m->handle[i];
		l->away = l->stranger = true;
		if (!l->handle || !pno_handle_enter(s->ses, i, l->handle, s))
			return false;
		s->udp->legs++;
	}
	s->handle = m->handle[0];
	s->qp = &s->ses->chan[0]->qp[0];
	pno_sock_set_peer(s, &m->peer);
	s->away = true;
	s->udp->used = true; /* by somebody */
	s->udp->mtu = UINT16_MAX; /* not known here: the DPU decides */
	s->state = PNO_DGRAM;
	pno_count(sockets_udp);
	return true;
}
