/* SPDX-License-Identifier: Apache-2.0 */

/*
 * How a listener comes to be: opened by listen(), inherited from another
 * process, or opened again after the DPU was lost.
 *
 * A listener that several processes hold is opened again by one of them only:
 * each first asks hostd for the socket's cookie, under which the first has
 * registered it; who finds the address taken meanwhile asks again later.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "epoll.h"
#include "hostd.h"
#include "listener.h"
#include "log.h"
#include "memory.h"
#include "real.h"
#include "sock.h"
#include "stats.h"
#include "udp.h"
#include "wait.h"

static int bind_shard(struct pno_sock *s, unsigned shard, uint32_t flags)
{
	struct pno_bind_req req = { .local = pno_sock_local(s), .proto = PNO_PROTO_TCP, .flags = flags };
	struct pno_call call;

	return pno_sock_ask(s, &s->ses->chan[0]->qp[shard], (struct pno_record){
		.op = PNO_OP_BIND, .len = sizeof req, .sock = s->handle }, &req, &call);
}

static int listen_shard(struct pno_sock *s, unsigned shard, uint32_t handle, int backlog)
{
	struct pno_call call;

	return pno_sock_ask(s, &s->ses->chan[0]->qp[shard], (struct pno_record){
		.op = PNO_OP_LISTEN, .sock = handle, .ack = backlog }, NULL, &call);
}

int pno_listener_resume(struct pno_sock *s, int backlog)
{
	int err = 0;

	for (unsigned i = 0; i < s->ses->shards && !err; i++)
		if (s->listener->handle[i])
			err = listen_shard(s, i, s->listener->handle[i], backlog);
	if (err)
		return err;
	s->listener->backlog = backlog;
	s->listener->stopped = false;
	pno_sock_refresh(s);
	return 0;
}

static void close_shard(struct pno_sock *s, unsigned shard)
{
	pno_sock_record(s, &s->ses->chan[0]->qp[shard], (struct pno_record){
		.op = PNO_OP_CLOSE, .sock = s->handle }, NULL);
}

/* On every shard, or, undoing what was done, on none but the first. */
static int listen_everywhere(struct pno_sock *s, int backlog, uint32_t flags)
{
	unsigned shard, shards = s->ses->shards;
	int err = 0;

	for (shard = 1; shard < shards && !err; shard++)
		err = bind_shard(s, shard, flags);
	if (err) {
		while (--shard > 1)
			close_shard(s, shard - 1);
		return err;
	}
	for (shard = 0; shard < shards && !err; shard++)
		err = listen_shard(s, shard, s->handle, backlog);
	if (err)
		for (shard = 1; shard < shards; shard++)
			close_shard(s, shard);
	return err;
}

/* So that a process that gets the descriptor by exec or SCM_RIGHTS finds it. */
static void register_cookie(struct pno_sock *s, int fd, const uint8_t *token)
{
	struct pno_listener *l = s->listener;
	struct pno_msg_register_socket m = {
		.kind = PNO_SOCK_LISTENER, .proto = PNO_PROTO_TCP, .backlog = l->backlog,
		.local = pno_sock_local(s),
	};
	struct pno_msg_ack ack;
	struct pno_session *ses = s->ses;
	socklen_t len = sizeof m.cookie;
	uint32_t generation = s->generation;
	int err;

	if (real.getsockopt(fd, SOL_SOCKET, SO_COOKIE, &m.cookie, &len) < 0)
		return;
	memcpy(m.handle, l->handle, sizeof m.handle);
	if (token)
		memcpy(m.token, token, sizeof m.token);
	pno_sock_unlock(s);
	err = pno_hostd_ask(ses, &m, PNO_MSG_REGISTER_SOCKET, sizeof m, fd, &ack, PNO_MSG_ACK, sizeof ack, NULL);
	pno_lock(&s->lock);
	if (err || ack.err)
		pno_log_once("hostd does not register a listener: it cannot be passed on: %s", strerror(err ? err : ack.err));
	else if (s->generation == generation && s->listener == l)
		l->cookie = m.cookie;
}

/*
 * This process may close it, or end, before the receiver has it: until hostd
 * says that nobody has the descriptor any more, the DPU keeps it.
 */
void pno_listener_pass(struct pno_sock *s, int fd)
{
	struct pno_listener *l = s->listener;
	struct pno_fork_req req;
	struct pno_call call;

	if (l->passed || l->lost || getrandom(req.token, sizeof req.token, 0) != sizeof req.token)
		return;
	l->passed = s->common = true;
	for (unsigned i = 0; i < s->ses->shards; i++) {
		int err = 0;

		if (l->handle[i])
			err = pno_sock_ask(s, &s->ses->chan[0]->qp[i], (struct pno_record){
				.op = PNO_OP_SHARED, .len = sizeof req, .sock = l->handle[i] }, &req, &call);
		if (err == EBADF)
			return;
		if (err)
			pno_log(PNO_ERROR, "a listener that is passed on is lost if this process ends first: %s",
				strerror(err));
	}
	register_cookie(s, fd, req.token);
}

int pno_listener_open(struct pno_sock *s, int fd, int backlog)
{
	struct pno_listener *l = s->listener ? s->listener : pno_calloc(1, sizeof *l);
	uint32_t flags = pno_sock_bind_flags(s, fd);
	int err;

	if (!l)
		return ENOMEM;
	s->listener = l;
	l->sock = s;
	err = listen_everywhere(s, backlog, flags);
	if (err)
		return err;
	l->backlog = backlog;
	l->stopped = l->lost = false;
	pno_listener_empty(s);
	for (unsigned i = 0; i < s->ses->shards; i++)
		l->handle[i] = s->handle;
	s->state = PNO_LISTENING;
	pno_listener_enlist(l);
	pno_sock_refresh(s);
	pno_sock_send_opts(s);
	pno_count(sockets_offloaded);
	pno_count(sockets_listening);
	register_cookie(s, fd, NULL);
	pno_epoll_convert(s);
	return 0;
}

/* Handles that the DPU gave us for a listener of another process. */
static bool take_share(struct pno_sock *s, struct pno_listener *l, const struct pno_msg_socket *m)
{
	for (unsigned i = 0; i < s->ses->shards; i++) {
		l->handle[i] = m->handle[i];
		if (l->handle[i] && !pno_handle_enter(s->ses, i, l->handle[i], s))
			return false;
	}
	l->cookie = m->cookie;
	s->qp = &s->ses->chan[0]->qp[0];
	s->handle = l->handle[0];
	s->shared = true;
	return true;
}

/* A listener that another process opened; its handles here are the DPU's. */
bool pno_listener_inherit(struct pno_sock *s, const struct pno_msg_socket *m)
{
	struct pno_listener *l = pno_calloc(1, sizeof *l);

	if (!l)
		return false;
	l->sock = s;
	l->backlog = m->backlog;
	if (!take_share(s, l, m)) {
		pno_free(l);
		return false;
	}
	s->listener = l;
	s->state = PNO_LISTENING;
	pno_listener_enlist(l);
	pno_sock_refresh(s);
	return true;
}

int pno_sock_descriptor(const struct pno_sock *s)
{
	for (unsigned fd = 0; fd < atomic_load(&pno_fd_top); fd++)
		if (pno_fd_obj(fd) == (struct pno_obj *)s)
			return fd;
	return -1;
}

/* Somebody else may have opened it again. Socket locked, and not meanwhile. */
static bool ask_for_share(struct pno_sock *s, int fd)
{
	struct pno_msg_lookup_socket req = { .cookie = s->listener->cookie };
	struct pno_msg_socket ans;
	struct pno_session *ses = s->ses;
	uint32_t generation = s->generation;
	int err;

	if (!req.cookie)
		return false;
	pno_sock_unlock(s);
	err = pno_hostd_ask(ses, &req, PNO_MSG_LOOKUP_SOCKET, sizeof req, fd,
			    &ans, PNO_MSG_SOCKET, sizeof ans, NULL);
	pno_lock(&s->lock);
	return !err && ans.kind == PNO_SOCK_LISTENER && s->generation == generation &&
	       take_share(s, s->listener, &ans);
}

static bool open_again(struct pno_sock *s, int fd)
{
	uint32_t flags = pno_sock_bind_flags(s, fd), generation = s->generation;
	struct pno_listener *l = s->listener;
	int err;

	s->handle = pno_handle_new(s->ses, s);
	if (!s->handle)
		return false;
	err = bind_shard(s, 0, flags);
	if (!err) {
		err = listen_everywhere(s, l->backlog, flags);
		if (err && err != EBADF)
			close_shard(s, 0);
	}
	if (s->generation != generation)
		return false;
	if (err) {
		pno_handle_drop(s->ses, 0, s->handle);
		pno_debug("a listener does not come back yet: %s", strerror(err));
		return false;
	}
	for (unsigned i = 0; i < s->ses->shards; i++)
		l->handle[i] = s->handle;
	pno_sock_send_opts(s);
	register_cookie(s, fd, NULL);
	return s->generation == generation;
}

/* Into the new session. Socket locked. */
static void revive(struct pno_sock *s, struct pno_session *ses)
{
	int fd = pno_sock_descriptor(s);

	if (fd < 0)
		return;
	pno_listener_empty(s);
	s->ses = ses;
	s->qp = &ses->chan[0]->qp[0];
	s->shard = 0;
	s->away = false;
	if (!ask_for_share(s, fd) && !open_again(s, fd))
		return;
	s->listener->lost = false;
	pno_epoll_adopted(s);
	pno_log(PNO_ERROR, "a listener is back on the DPU");
}

static void revive_datagrams(struct pno_sock *s, void *arg)
{
	(void)arg;
	pno_lock(&s->lock);
	if (s->state == PNO_DGRAM && s->udp->lost)
		pno_udp_revive(s, pno_sock_descriptor(s));
	pno_unlock(&s->lock);
}

#define REVIVE_NANOS 1000000000ll

void pno_listener_revive(void)
{
	static _Atomic int64_t next;
	struct pno_session *ses;
	struct pno_sock *s;
	int64_t now = pno_now(), due = atomic_load(&next);

	if (now < due || !atomic_compare_exchange_strong(&next, &due, now + REVIVE_NANOS))
		return;
	ses = pno_session_get();
	for (unsigned i = 0; ses && (s = pno_listener_nth(i)); i++) {
		pno_lock(&s->lock);
		if (s->state == PNO_LISTENING && s->listener->lost)
			revive(s, ses);
		pno_unlock(&s->lock);
	}
	if (ses)
		pno_sock_each(revive_datagrams, NULL);
}
