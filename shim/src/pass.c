/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Connections that leave the process: by SCM_RIGHTS, over exec, or to a child
 * that posix_spawn starts.
 *
 * Right before, a connection gets a placeholder of its own: one end of a Unix
 * socket pair, with a name by which the receiver knows what it is. The other
 * end goes to hostd. The kernel counts the references of ours, in processes
 * and in messages under way; when the last is gone, hostd's end hangs up, and
 * the DPU, which has kept the connection under a token meanwhile, lets it go.
 * So the sender may close the connection at once, as such senders do.
 *
 * What has been received here and not been read goes back to the DPU, which
 * sends it to whoever claims the connection: from the last block to the first,
 * so that each ends where the one before it begins.
 *
 * A socket that is bound only, and a datagram socket, keep their placeholders,
 * and are found by their cookies like a listener. The DPU keeps them, and what
 * is unread of them, in the same way.
 */
#include "pass.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/un.h>
#include <unistd.h>

#include "hostd.h"
#include "listener.h"
#include "log.h"
#include "quiet.h"
#include "real.h"
#include "relay.h"
#include "sock.h"
#include "stats.h"
#include "udp.h"

#define NAME "pno-connection-"
#define UNDER_WAY 1 /* no socket's cookie */

bool pno_pass_marked(int fd)
{
	struct sockaddr_un sa;
	socklen_t len = sizeof sa;

	return real.getsockname(fd, (struct sockaddr *)&sa, &len) == 0 && sa.sun_family == AF_UNIX &&
	       len > offsetof(struct sockaddr_un, sun_path) + sizeof NAME && !sa.sun_path[0] &&
	       !memcmp(sa.sun_path + 1, NAME, sizeof NAME - 1);
}

/* end[0] is the placeholder. */
static bool make_pair(int end[2], const uint8_t *token, bool nonblock)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	size_t n = offsetof(struct sockaddr_un, sun_path) + sizeof NAME;
	char *at = sa.sun_path + sizeof NAME;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | (nonblock ? SOCK_NONBLOCK : 0), 0, end) < 0)
		return false;
	memcpy(sa.sun_path + 1, NAME, sizeof NAME - 1);
	for (int i = 0; i < PNO_TOKEN_LEN; i++, at += 2)
		snprintf(at, 3, "%02x", token[i]);
	n += 2 * PNO_TOKEN_LEN;
	if (real.bind(end[0], (struct sockaddr *)&sa, n) == 0)
		return true;
	quiet_close(end[0]);
	quiet_close(end[1]);
	return false;
}

/* Copies [from, from + n) of the received stream. Socket locked. */
static bool copy_out(const struct pno_sock *s, uint64_t from, uint8_t *to, size_t n)
{
	size_t done = 0;

	for (const struct pno_seg *g = s->rx_head; g && done < n; g = g->next) {
		uint64_t skip = from + done - g->off, k;

		if (g->off > from + done)
			return false;
		if (skip >= g->len)
			continue;
		k = g->len - skip < n - done ? g->len - skip : n - done;
		memcpy(to + done, g->data + skip, k);
		done += k;
	}
	return done == n;
}

/* [from, end) of what was received, from the last block to the first. */
static int send_back(struct pno_sock *s, struct pno_qp *q, uint32_t handle, const uint8_t *all, uint64_t from,
		     uint64_t end)
{
	struct pno_call call;
	int err = 0;

	while (!err && end > from) {
		uint32_t n = end - from < PNO_MAX_PAYLOAD ? end - from : PNO_MAX_PAYLOAD;
		struct pno_record r = { .op = PNO_OP_UNREAD, .len = n, .sock = handle };

		end -= n;
		r.ack = end;
		if (end > from)
			err = pno_sock_record(s, q, r, all + (end - from)) ? 0 : ENETDOWN;
		else
			err = pno_sock_ask(s, q, r, all, &call);
	}
	return err;
}

/* The DPU keeps what it sent from kept on; before that, it is ours to give, or
 * another process's, which has the connection since a fork and has had more of it. */
static int give_back(struct pno_sock *s, uint32_t kept)
{
	uint64_t from = s->rx_read, end = from + (int32_t)(kept - (uint32_t)from);
	uint8_t *all;
	int err;

	if ((int64_t)(end - from) <= 0 || (s->away && end > s->rx_next))
		return 0;
	all = malloc(end - from);
	if (!all)
		return ENOMEM;
	if (end > s->rx_next || !copy_out(s, from, all, end - from))
		err = EAGAIN;
	else
		err = send_back(s, s->qp, s->handle, all, from, end);
	free(all);
	return err;
}

/* The DPU keeps the connection, from then on until hostd says otherwise, and all
 * that is unread. */
static int keep(struct pno_sock *s, const uint8_t *token, bool *kept_there)
{
	struct pno_fork_req req;
	struct pno_call call;
	uint32_t kept;
	int err;

	memcpy(req.token, token, sizeof req.token);
	s->rx_told = s->rx_read;
	err = pno_sock_ask(s, s->qp, (struct pno_record){
		.op = PNO_OP_SHARED, .len = sizeof req, .sock = s->handle, .ack = s->rx_read }, &req, &call);
	if (err)
		return err;
	*kept_there = true;
	s->shared = s->common = true; /* it was told that it is alone, before */
	if (call.len < sizeof kept)
		return EPROTO;
	memcpy(&kept, call.payload, sizeof kept);
	return give_back(s, kept);
}

/* hostd has both ends of the pair from here. Unlocks meanwhile. */
static int enrol(struct pno_sock *s, const uint8_t *token, const int end[2], uint64_t *cookie)
{
	struct pno_msg_register_socket m = {
		.kind = PNO_SOCK_CONN, .proto = PNO_PROTO_TCP, .shard = s->shard, .domain = s->domain,
		.local = pno_sock_local(s), .peer = pno_sock_peer(s),
	};
	struct pno_session *ses = s->ses;
	uint32_t generation = s->generation;
	socklen_t len = sizeof m.cookie;
	struct pno_msg_ack ack;
	int err;

	if (real.getsockopt(end[0], SOL_SOCKET, SO_COOKIE, &m.cookie, &len) < 0)
		return errno;
	m.handle[s->shard] = s->handle;
	memcpy(m.token, token, sizeof m.token);
	pno_sock_unlock(s);
	err = pno_hostd_ask_with(ses, &m, PNO_MSG_REGISTER_SOCKET, sizeof m, end, 2,
				 &ack, PNO_MSG_ACK, sizeof ack, NULL);
	pno_lock(&s->lock);
	*cookie = m.cookie;
	return err ? err : ack.err ? ack.err : s->generation != generation ? EBADF : 0;
}

void pno_pass_replace(struct pno_sock *s, int first, int file)
{
	int left = s->nfds;

	for (unsigned fd = first; left && fd < atomic_load(&pno_fd_top); fd++) {
		int flags;

		if (pno_fd_obj(fd) != (struct pno_obj *)s)
			continue;
		left--;
		flags = real.fcntl(fd, F_GETFD);
		real.dup3(file, fd, flags & FD_CLOEXEC ? O_CLOEXEC : 0);
	}
	s->own_file = true;
	s->pair = false;
}

static int pass_connection(struct pno_sock *s, int fd)
{
	uint8_t token[PNO_TOKEN_LEN];
	uint64_t cookie = 0;
	bool kept = false;
	int end[2], err;

	if (getrandom(token, sizeof token, 0) != sizeof token || !make_pair(end, token, s->nonblock))
		return errno ? errno : EIO;
	pno_share_furnish(s, fd, end[0]);
	s->cookie = UNDER_WAY;
	if (s->shut_rd && !s->shut_wr)
		pno_sock_record(s, s->qp, (struct pno_record){
			.op = PNO_OP_SHUTDOWN, .flags = PNO_FLAG_SHUT_NOTED, .sock = s->handle,
			.seq = s->tx_sent, .ack = s->rx_read }, NULL);
	err = keep(s, token, &kept);
	if (kept) { /* else nobody would end that; if it failed, hostd does at once */
		int rc = enrol(s, token, end, &cookie);

		if (!err || rc == EBADF)
			err = rc;
	}
	if (err != EBADF) {
		s->cookie = err ? 0 : cookie;
		if (!err) {
			pno_pass_replace(s, 0, end[0]);
			s->pair = true;
		}
	}
	quiet_close(end[0]);
	quiet_close(end[1]);
	return err == EBADF ? 0 : err;
}

/* The datagrams of a shard that came here before the DPU kept any are given
 * back, as a connection's bytes are. */
static int give_back_leg(struct pno_sock *s, unsigned i, uint32_t kept)
{
	struct pno_leg *l = &s->udp->leg[i];
	uint64_t from = l->rx_read, end = from + (int32_t)(kept - (uint32_t)from);
	size_t n = (int64_t)(end - from) > 0 ? end - from : 0, have = 0;
	uint8_t *all = n ? malloc(n) : NULL;
	int err = 0;

	if (!n)
		return 0;
	if (!all)
		return ENOMEM;
	for (const struct pno_seg *g = s->rx_head; g && have < n; g = g->next) {
		if (g->shard != i)
			continue;
		if (g->off != from + have || g->len > n - have)
			break;
		memcpy(all + have, g->data, g->len);
		have += g->len;
	}
	err = have == n ? send_back(s, pno_udp_qp(s, i), l->handle, all, from, end) : EAGAIN;
	free(all);
	return err;
}

/* The DPU keeps the socket on every shard where it is. */
static int keep_bound(struct pno_sock *s, struct pno_msg_register_socket *m)
{
	unsigned legs = s->udp ? s->udp->legs : 1;
	struct pno_fork_req req;
	int err = 0;

	if (getrandom(req.token, sizeof req.token, 0) != sizeof req.token)
		return EIO;
	for (unsigned i = 0; i < legs && !err; i++) {
		struct pno_leg *l = s->udp ? &s->udp->leg[i] : NULL;
		struct pno_record r = { .op = PNO_OP_SHARED, .len = sizeof req, .sock = m->handle[i] };
		struct pno_call call;
		uint32_t kept;

		if (l) {
			l->rx_told = l->rx_read;
			r.ack = l->rx_read;
		}
		err = pno_sock_ask(s, &s->qp->chan->qp[i], r, &req, &call);
		if (err || !l || l->away)
			continue;
		memcpy(&kept, call.payload, sizeof kept);
		err = call.len < sizeof kept ? EPROTO : give_back_leg(s, i, kept);
	}
	memcpy(m->token, req.token, sizeof m->token);
	return err;
}

static int pass_bound(struct pno_sock *s, int fd, bool in_message)
{
	struct pno_msg_register_socket m = {
		.kind = PNO_SOCK_BOUND, .proto = PNO_PROTO_TCP, .domain = s->domain,
		.local = pno_sock_local(s),
	};
	struct pno_session *ses = s->ses;
	uint32_t generation = s->generation;
	socklen_t len = sizeof m.cookie;
	struct pno_msg_ack ack;
	int err;

	if (real.getsockopt(fd, SOL_SOCKET, SO_COOKIE, &m.cookie, &len) < 0)
		return errno;
	m.handle[0] = s->handle;
	for (unsigned i = 0; s->udp && i < s->udp->legs; i++)
		m.handle[i] = s->udp->leg[i].handle;
	if (s->udp) {
		m.proto = PNO_PROTO_UDP;
		m.peer = pno_sock_peer(s);
		s->shared = s->common = true;
	}
	s->cookie = m.cookie;
	if (in_message || s->udp) { /* what is unread is kept for a new image, too */
		s->kept = true;
		err = keep_bound(s, &m);
		if (s->generation != generation)
			return 0;
		if (err)
			pno_log(PNO_ERROR, "a socket that is passed on is lost if this process ends first: %s", strerror(err));
	}
	pno_sock_unlock(s);
	err = pno_hostd_ask(ses, &m, PNO_MSG_REGISTER_SOCKET, sizeof m, fd, &ack, PNO_MSG_ACK, sizeof ack, NULL);
	pno_lock(&s->lock);
	err = err ? err : ack.err;
	if (err && s->generation == generation)
		s->cookie = 0;
	return err;
}

/*
 * What is over has nothing to be kept. But this process may get it back, and
 * knows it by its cookie then; others get a socket that was never connected.
 */
static int pass_dead(struct pno_sock *s, int fd)
{
	socklen_t len = sizeof s->cookie;

	if (!s->own_file && !pno_pass_end(s))
		return errno;
	return real.getsockopt(fd, SOL_SOCKET, SO_COOKIE, &s->cookie, &len) < 0 ? errno : 0;
}

static void pass(int fd, bool in_message)
{
	struct pno_obj *o = pno_fd_obj(fd);
	struct pno_session *ses;
	struct pno_sock *s;
	int saved = errno, err = 0;

	pno_pipe_leave_fd(fd);
	if (likely(!o || o->kind != PNO_KIND_SOCK || ((struct pno_sock *)o)->state < PNO_BOUND))
		return;
	ses = pno_session_get(); /* the child of a fork needs its own */
	s = pno_sock_peek(fd);
	if (!s)
		return;
	if (s->hold && !pno_relay_fetch(s)) {
		pno_sock_unlock(s);
		return;
	}
	if (ses && s->ses == ses && s->cookie != UNDER_WAY) {
		if (s->state == PNO_OPEN && !s->pair)
			err = pass_connection(s, fd);
		else if (s->state == PNO_BOUND || s->state == PNO_DGRAM)
			err = s->cookie && (s->kept || !in_message) ? 0 : pass_bound(s, fd, in_message);
		else if (s->state == PNO_DEAD && !s->cookie)
			err = pass_dead(s, fd);
		else if (s->state == PNO_LISTENING && in_message)
			pno_listener_pass(s, fd); /* over exec the session lasts */
	}
	pno_sock_unlock(s);
	if (err)
		pno_log(PNO_ERROR, "descriptor %d cannot be passed on: %s", fd, strerror(err));
	errno = saved;
}

void pno_pass(int fd)
{
	pass(fd, false);
}

bool pno_pass_end(struct pno_sock *s)
{
	int fd = real.socket(s->domain, SOCK_STREAM | SOCK_CLOEXEC | (s->nonblock ? SOCK_NONBLOCK : 0), 0);

	if (fd < 0)
		return false;
	pno_pass_replace(s, 0, fd);
	quiet_close(fd);
	s->cookie = 0;
	return true;
}

void pno_pass_message(const struct msghdr *m)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR((struct msghdr *)m, c)) {
		size_t n;
		int fd;

		if (c->cmsg_len < CMSG_LEN(0))
			return;
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		n = (c->cmsg_len - CMSG_LEN(0)) / sizeof fd;
		for (size_t i = 0; i < n; i++) {
			memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
			pass(fd, true);
		}
	}
}

void pno_pass_exec(void)
{
	for (unsigned fd = 0; fd < atomic_load(&pno_fd_top); fd++) {
		struct pno_obj *o = pno_fd_obj(fd);

		if (o && (o->kind == PNO_KIND_SOCK || o->kind == PNO_KIND_PIPE) && !(real.fcntl(fd, F_GETFD) & FD_CLOEXEC))
			pno_pass(fd);
	}
}
