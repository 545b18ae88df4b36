/* SPDX-License-Identifier: Apache-2.0 */

/*
 * bind, listen, connect: where it is decided whose a socket is.
 *
 * A fresh socket is the kernel's. bind and connect ask the policy; what it
 * leaves to the kernel is forgotten by the shim (a bound one is remembered
 * until listen or connect, which may decide otherwise). The requests here are
 * rare, so waiting for the DPU's answer is fine; the socket is not locked
 * meanwhile, and must still be the same afterwards.
 */
#include <errno.h>
#include <netinet/tcp.h>
#include <string.h>

#include "affinity.h"
#include "epoll.h"
#include "interrupt.h"
#include "listener.h"
#include "log.h"
#include "pass.h"
#include "policy.h"
#include "quiet.h"
#include "real.h"
#include "relay.h"
#include "stats.h"
#include "wait.h"

int pno_sock_ask(struct pno_sock *s, struct pno_qp *q, struct pno_record r, const void *payload, struct pno_call *c)
{
	struct pno_session *ses = s->ses;
	uint32_t generation = s->generation;
	int err;

	pno_call_begin(q->chan, c);
	r.seq = c->tag;
	pno_sock_record(s, q, r, payload);
	pno_sock_unlock(s);
	err = pno_call_wait(ses, c);
	pno_lock(&s->lock);
	return s->generation != generation ? EBADF : err;
}

/* A flag of the placeholder; the kernel is asked only about a socket that came
 * from elsewhere. */
static bool placeholder_option(const struct pno_sock *s, int fd, int level, int name)
{
	int v = 0;
	socklen_t len = sizeof v;
	const struct pno_opt *o;

	if (s->made_here && !s->udp && (level != IPPROTO_IPV6 || name != IPV6_V6ONLY)) {
		o = pno_opt_find(s, level, name);
		if (o)
			memcpy(&v, o->val, sizeof v);
		return v;
	}
	return real.getsockopt(fd, level, name, &v, &len) == 0 && v;
}

uint32_t pno_sock_bind_flags(const struct pno_sock *s, int fd)
{
	uint32_t f = 0;

	if (placeholder_option(s, fd, SOL_SOCKET, SO_REUSEADDR))
		f |= PNO_BIND_REUSE_ADDR;
	if (placeholder_option(s, fd, SOL_SOCKET, SO_REUSEPORT))
		f |= PNO_BIND_REUSE_PORT;
	if (s->domain == AF_INET6 && placeholder_option(s, fd, IPPROTO_IPV6, IPV6_V6ONLY))
		f |= PNO_BIND_V6ONLY;
	if (placeholder_option(s, fd, IPPROTO_IP, IP_TRANSPARENT) ||
	    placeholder_option(s, fd, IPPROTO_IPV6, IPV6_TRANSPARENT))
		f |= PNO_BIND_TRANSPARENT;
	if (placeholder_option(s, fd, IPPROTO_IP, IP_FREEBIND) ||
	    placeholder_option(s, fd, IPPROTO_IPV6, IPV6_FREEBIND))
		f |= PNO_BIND_FREE;
	return f;
}

enum verdict { OFFLOAD, KERNEL, REFUSE };

/* *err is set with REFUSE. */
static enum verdict decide(struct pno_session *ses, int op, const struct pno_addr *a, int *err)
{
	int action = ses ? pno_policy(ses, op, PNO_PROTO_TCP, a) : PNO_ACTION_KERNEL;

	*err = ses ? EACCES : pno_session_refusal();
	if (action == PNO_ACTION_REFUSE || (!ses && *err)) {
		pno_count(sockets_refused);
		return REFUSE;
	}
	return action == PNO_ACTION_OFFLOAD ? OFFLOAD : KERNEL;
}

static void count_kernel(const struct pno_session *ses)
{
	if (ses)
		pno_count(sockets_kernel_policy);
	else
		pno_count(sockets_kernel_no_hostd);
}

/* Bind on shard 0, which owns ports: under a new handle, which is 0 on failure.
 * *a becomes the address that it is. */
static int ask_bind(struct pno_sock *s, int fd, struct pno_session *ses, struct pno_addr *a, uint32_t *handle)
{
	struct pno_bind_req req = { .local = *a, .proto = PNO_PROTO_TCP, .flags = pno_sock_bind_flags(s, fd) };
	uint32_t h = *handle = pno_handle_new(ses, s);
	struct pno_call call;
	int err;

	if (!h)
		return ENOBUFS;
	err = pno_sock_ask(s, &ses->chan[0]->qp[0], (struct pno_record){
		.op = PNO_OP_BIND, .len = sizeof req, .sock = h }, &req, &call);
	if (err == EBADF)
		return err;
	if (err) {
		pno_handle_drop(ses, 0, h);
		*handle = 0;
		return err;
	}
	if (call.len >= sizeof *a)
		memcpy(a, call.payload, sizeof *a);
	return 0;
}

static bool is_any6(const struct pno_addr *a)
{
	static const uint8_t any[16];

	return a->family == 6 && !memcmp(a->ip, any, sizeof any);
}

/* One address of IPv6 leaves nothing to IPv4, and the option says so. */
void pno_sock_only_v6(struct pno_sock *s, int fd)
{
	struct pno_addr local = pno_sock_local(s);
	int on = 1;

	if (is_any6(&local) || real.setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on) < 0)
		return;
	if (!s->udp)
		pno_opt_keep(s, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on, false);
}

static int bind_on_dpu(struct pno_sock *s, int fd, struct pno_session *ses, const struct pno_addr *a)
{
	struct pno_addr local = *a;
	int err;

	s->ses = ses;
	s->qp = &ses->chan[0]->qp[0];
	s->shard = 0;
	err = ask_bind(s, fd, ses, &local, &s->handle);
	if (err == EBADF)
		return err;
	if (err) {
		s->ses = NULL;
		s->qp = NULL;
		return err;
	}
	pno_sock_set_local(s, &local);
	s->state = PNO_BOUND;
	s->bound = true;
	s->any_port = !a->port;
	if (local.family == 6)
		pno_sock_only_v6(s, fd);
	return 0;
}

/*
 * A proxy that speaks to its servers from its clients' addresses binds each
 * connection to an address that any stack takes, and leaves the port to
 * connect: there is nothing to ask the DPU before.
 */
static bool bind_later(const struct pno_sock *s, int fd, const struct pno_addr *a)
{
	return !a->port && placeholder_option(s, fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT) &&
	       (pno_sock_bind_flags(s, fd) & PNO_BIND_TRANSPARENT);
}

/* The streams of another connection count from nothing. */
static void rewind_streams(struct pno_sock *s)
{
	pno_rx_drop_all(s);
	s->tx_sent = s->tx_acked = 0;
	s->moved = false;
	s->rx_read = s->rx_next = s->rx_told = s->rx_fin = 0;
	s->shut_rd = s->shut_wr = s->fin = s->shared = s->away = s->stranger = s->claiming = false;
	s->former = 0;
	s->standing = 0;
}

/* A failed attempt, or a connection that is over, may be followed by another. */
static void anew(struct pno_sock *s)
{
	if (s->state != PNO_DEAD)
		return;
	pno_sock_release(s);
	rewind_streams(s);
	s->bound = s->unconnected = false;
	s->err = 0;
	s->cookie = 0; /* what was said of it before is not true any more */
	s->state = PNO_FRESH;
}

/* The same of one that was bound meanwhile: it has its handle already. */
static void bound_again(struct pno_sock *s)
{
	rewind_streams(s);
	s->rebound = s->unconnected = s->connect_told = false;
	s->err = 0;
	s->state = PNO_BOUND;
	pno_sock_refresh(s);
}

/* What the kernel says of a peer's address before it looks for a way there. */
static int mistake(const struct pno_sock *s, int fd, const struct sockaddr *sa, socklen_t len)
{
	const struct sockaddr_in6 *in6 = (const void *)sa;

	if (len < (s->domain == AF_INET6 ? offsetof(struct sockaddr_in6, sin6_scope_id) : sizeof(struct sockaddr_in)))
		return EINVAL;
	if (sa->sa_family != s->domain)
		return EAFNOSUPPORT;
	if (s->domain == AF_INET6 && IN6_IS_ADDR_V4MAPPED(&in6->sin6_addr) &&
	    placeholder_option(s, fd, IPPROTO_IPV6, IPV6_V6ONLY))
		return ENETUNREACH;
	return 0;
}

bool pno_sock_gave_port_back(const struct pno_sock *s)
{
	return (s->state == PNO_DEAD || (s->state == PNO_OPEN && pno_sock_over(s))) && !s->shared && !s->kernel_bound &&
	       !s->rebound && (!s->bound || s->any_port);
}

static void to_any(struct pno_sock *s, uint16_t port)
{
	pno_sock_set_local(s, &(struct pno_addr){ .family = s->domain == AF_INET6 ? 6 : 4, .port = port });
}

/*
 * What is not fresh is bound already, but first the address is looked at. The
 * socket of a connection that is over has no port any more, and may be bound
 * again; it stays what it is, until connect has said how that one went.
 */
static int bind_used(struct pno_sock *s, int fd, struct pno_session *ses, const struct sockaddr *sa, socklen_t len)
{
	bool again = pno_sock_gave_port_back(s), any_port;
	struct pno_addr a;
	uint32_t handle;
	int err;

	if (!ses || s->ses != ses || pno_addr_from(sa, len, &a) || decide(ses, PNO_RULE_LISTEN, &a, &err) != OFFLOAD)
		return EINVAL;
	any_port = !a.port;
	if (!again)
		a.port = 0;
	err = ask_bind(s, fd, ses, &a, &handle);
	if (err == EADDRINUSE && again)
		to_any(s, s->local.port); /* which the kernel does on the way */
	if (err)
		return again || err == EADDRNOTAVAIL || err == EBADF ? err : EINVAL;
	if (!again || !pno_sock_gave_port_back(s)) {
		pno_sock_record(s, &ses->chan[0]->qp[0], (struct pno_record){ .op = PNO_OP_CLOSE, .sock = handle }, NULL);
		pno_handle_drop(ses, 0, handle);
		return EINVAL;
	}
	pno_sock_release(s);
	s->handle = handle;
	s->shard = 0;
	s->qp = &s->qp->chan->qp[0];
	pno_sock_set_local(s, &a);
	s->state = PNO_DEAD;
	s->bound = s->rebound = true;
	s->any_port = any_port;
	pno_sock_refresh(s);
	return 0;
}

int pno_sock_bind(struct pno_sock *s, int fd, struct pno_session *ses, const struct sockaddr *sa, socklen_t len)
{
	struct pno_addr a;
	int err;

	if (s->state != PNO_FRESH) {
		err = mistake(s, fd, sa, len);
		if (err)
			return err == EAFNOSUPPORT ? err : EINVAL;
		if (s->state != PNO_DEAD || !s->unconnected || s->err)
			return bind_used(s, fd, ses, sa, len);
		anew(s);
	}
	err = s->kernel_bound ? EINVAL : mistake(s, fd, sa, len);
	if (!err && !pno_addr_from(sa, len, &a)) {
		switch (decide(ses, PNO_RULE_LISTEN, &a, &err)) {
		case OFFLOAD:
			s->late_bound = bind_later(s, fd, &a);
			if (!s->late_bound)
				return bind_on_dpu(s, fd, ses, &a);
			break;
		case REFUSE:
			return err;
		case KERNEL:
			break;
		}
	}
	/* What is wrong with the arguments, the kernel knows best. */
	if (real.bind(fd, sa, len) < 0)
		return errno;
	s->kernel_bound = true;
	return 0;
}

/* Where the connection starts from, if the program has said. */
static void choose_local(struct pno_sock *s, int fd, struct pno_addr *local)
{
	struct sockaddr_storage sa;
	socklen_t len = sizeof sa;

	memset(local, 0, sizeof *local);
	if (s->bound)
		*local = pno_sock_local(s);
	else if (s->kernel_bound && real.getsockname(fd, (struct sockaddr *)&sa, &len) == 0)
		pno_addr_from((struct sockaddr *)&sa, len, local);
}

int pno_sock_listen(struct pno_sock *s, int fd, struct pno_session *ses, int backlog)
{
	struct pno_addr any = { .family = s->domain == AF_INET6 ? 6 : 4 };
	int err;

	if (s->state == PNO_DEAD && s->unconnected && s->rebound) {
		bound_again(s);
	} else if (s->state == PNO_DEAD && s->unconnected) {
		anew(s);
		if (s->local.family)
			any = pno_sock_local(s); /* an address stays that bind has named */
		any.port = 0;
	}
	switch (s->state) {
	case PNO_LISTENING:
		if (!s->listener->lost)
			return pno_listener_resume(s, backlog); /* or another backlog */
		s->listener->backlog = backlog;
		return 0;
	case PNO_BOUND:
		return pno_listener_open(s, fd, backlog);
	case PNO_FRESH:
		break;
	default:
		return EINVAL;
	}
	if (s->late_bound)
		choose_local(s, fd, &any);
	switch (s->kernel_bound && !s->late_bound ? KERNEL : decide(ses, PNO_RULE_LISTEN, &any, &err)) {
	case OFFLOAD:
		err = bind_on_dpu(s, fd, ses, &any);
		return err ? err : pno_listener_open(s, fd, backlog);
	case REFUSE:
		return err;
	case KERNEL:
		break;
	}
	if (real.listen(fd, backlog) < 0)
		return errno;
	count_kernel(ses);
	return -1; /* the kernel's for good */
}

/* A bound socket turns out to be the kernel's after all. */
static int back_to_kernel(struct pno_sock *s, int fd)
{
	struct sockaddr_storage sa;
	socklen_t len = sizeof sa;
	struct pno_addr local;

	local = pno_sock_local(s);
	pno_addr_to(&local, s->domain, (struct sockaddr *)&sa, &len);
	pno_sock_release(s);
	s->state = PNO_FRESH;
	return real.bind(fd, (struct sockaddr *)&sa, len) < 0 ? errno : 0;
}

static int connect_in_kernel(struct pno_sock *s, int fd, struct pno_session *ses)
{
	int err = s->state == PNO_BOUND ? back_to_kernel(s, fd) : 0;

	if (err)
		return err;
	count_kernel(ses);
	return -1; /* the caller connects; this may block */
}

static int start_connect(struct pno_sock *s, int fd, struct pno_session *ses, const struct pno_addr *peer)
{
	struct pno_connect_req req = { .peer = *peer, .proto = PNO_PROTO_TCP };

	choose_local(s, fd, &req.local);
	if (peer->family == 4 && is_any6(&req.local))
		req.local.family = 4; /* from any address includes those of IPv4 */
	req.flags = s->bind_flags = pno_sock_bind_flags(s, fd);
	if (!s->bound) {
		s->handle = pno_handle_new(ses, s);
		if (!s->handle)
			return ENOBUFS;
		s->ses = ses;
		s->shard = pno_affinity_shard(ses);
	}
	s->qp = &pno_thread_chan(ses)->qp[s->shard];
	pno_sock_set_local(s, &req.local);
	pno_sock_set_peer(s, peer);
	s->state = PNO_CONNECTING;
	pno_sock_refresh(s);
	pno_count(sockets_offloaded);
	if (!pno_sock_record(s, s->qp, (struct pno_record){
			.op = PNO_OP_CONNECT, .len = sizeof req, .sock = s->handle }, &req))
		return ENETDOWN;
	pno_sock_send_opts(s);
	pno_epoll_convert(s);
	return 0;
}

static int finish_connect(struct pno_sock *s)
{
	int err;

	if (s->state == PNO_OPEN) {
		s->connect_told = true;
		return 0;
	}
	err = s->err ? s->err : ECONNABORTED;
	s->err = 0;
	if (s->rebound) {
		bound_again(s);
		return err;
	}
	pno_sock_release(s);
	rewind_streams(s);
	s->unconnected = true;
	pno_sock_refresh(s);
	return err;
}

/* Programs that talk to themselves rely on the kernel's loopback being done
 * with the handshake when a non-blocking connect returns. */
static bool on_loopback(const struct pno_addr *a)
{
	static const uint8_t any[16], one[16] = { [15] = 1 };

	if (a->family == 4)
		return a->ip[0] == 127 || !memcmp(a->ip, any, 4);
	return !memcmp(a->ip, one, sizeof one) || !memcmp(a->ip, any, sizeof any);
}

#define SETTLE_NANOS 20000000ll

void pno_sock_settle(struct pno_sock *s)
{
	if (s->state != PNO_CONNECTING)
		return;
	pno_interrupts_begin();
	pno_sock_wait(s, EPOLLOUT, pno_now() + SETTLE_NANOS);
}

/*
 * The DPU's routes are not known here, but who has none is to be told at once.
 * So the first connection to a destination is followed by a question: when that
 * is answered, the DPU has begun, or has said why not.
 */
#define BEGUN 256u

static _Atomic uint64_t begun[BEGUN]; /* hashes of destinations */

static uint64_t hash_of(const struct pno_session *ses, const struct pno_addr *peer)
{
	uint64_t h = (uintptr_t)ses;

	for (unsigned i = 0; i < sizeof peer->ip; i++)
		h = (h ^ peer->ip[i]) * 0x100000001b3ull;
	return (h ^ h >> 32) | 1;
}

/* The answers of the network, in contrast to those of the DPU. */
static bool from_afar(int err)
{
	return err == ECONNREFUSED || err == ECONNRESET || err == ETIMEDOUT;
}

/* 0, or why the DPU has not even begun. */
static int begin(struct pno_sock *s)
{
	struct pno_opt_val v = { .level = IPPROTO_TCP, .name = TCP_MAXSEG, .len = sizeof(int) };
	struct pno_addr peer = pno_sock_peer(s);
	uint64_t h = hash_of(s->ses, &peer);
	uint32_t generation = s->generation;
	struct pno_call call;

	if (likely(atomic_load_explicit(&begun[h % BEGUN], memory_order_relaxed) == h))
		return 0;
	pno_sock_ask(s, s->qp, (struct pno_record){
		.op = PNO_OP_GET_OPT, .len = sizeof v, .sock = s->handle }, &v, &call);
	if (s->generation != generation)
		return EBADF;
	if (s->state == PNO_DEAD && !from_afar(s->err))
		return finish_connect(s);
	atomic_store_explicit(&begun[h % BEGUN], h, memory_order_relaxed);
	return 0;
}

static int wait_connected(struct pno_sock *s)
{
	int64_t deadline = pno_deadline_within(s->snd_millis);
	struct pno_addr peer = pno_sock_peer(s);
	int rc;

	if (s->nonblock && on_loopback(&peer)) {
		pno_sock_settle(s);
		return EINPROGRESS;
	}
	if (s->nonblock) {
		rc = begin(s);
		return rc ? rc : EINPROGRESS;
	}
	pno_interrupts_begin();
	do
		rc = pno_sock_wait(s, EPOLLOUT, deadline);
	while (pno_wait_again(rc, deadline));
	if (rc == -EAGAIN)
		return EINPROGRESS;
	return rc < 0 ? -rc : finish_connect(s);
}

/*
 * As the kernel does, a connection is reset, and the socket is as good as new:
 * dead without an error, and to be connected or bound again. It needs a
 * placeholder that these can be asked of.
 */
int pno_sock_disconnect(struct pno_sock *s, int fd)
{
	bool linger = s->linger_reset, over = s->shut_wr && pno_sock_ended(s);

	if (s->state == PNO_FRESH)
		return s->kernel_bound || quiet_connect(fd, &(struct sockaddr){ .sa_family = AF_UNSPEC }, sizeof(struct sockaddr)) == 0
			? 0 : errno;
	if (s->state == PNO_BOUND)
		return 0;
	if (s->state == PNO_LISTENING) {
		if (!s->ses || s->listener->lost)
			return EISCONN;
		pno_listener_stop(s); /* how HAProxy pauses */
		return 0;
	}
	if (s->hold && !pno_relay_fetch(s))
		return EBADF;
	if ((!s->own_file || s->pair) && !pno_pass_end(s))
		return errno;
	if (s->rebound) {
		bound_again(s);
		return 0;
	}
	s->linger_reset = true;
	pno_sock_release(s);
	s->linger_reset = linger;
	rewind_streams(s);
	s->bound = s->connect_told = false;
	if (s->state != PNO_DEAD && !over)
		s->err = ECONNRESET;
	s->unconnected = true;
	s->state = PNO_DEAD;
	pno_sock_set_peer(s, &(struct pno_addr){ 0 });
	to_any(s, 0);
	pno_sock_event(s, EPOLLOUT | EPOLLHUP);
	return 0;
}

int pno_sock_connect(struct pno_sock *s, int fd, struct pno_session *ses, const struct sockaddr *sa, socklen_t len)
{
	struct pno_addr peer;
	int err;

	if (len < sizeof sa->sa_family)
		return EINVAL;
	if (sa->sa_family == AF_UNSPEC)
		return pno_sock_disconnect(s, fd);
	switch (s->state) {
	case PNO_CONNECTING:
		return s->nonblock ? EALREADY : wait_connected(s);
	case PNO_OPEN:
		if (s->connect_told)
			return EISCONN;
		s->connect_told = true;
		return 0;
	case PNO_LISTENING:
		return EISCONN;
	case PNO_DEAD:
		if (s->connect_told)
			return EISCONN;
		if (!s->unconnected)
			return finish_connect(s); /* also if SO_ERROR has said why */
		break;
	}
	err = mistake(s, fd, sa, len);
	if (!err)
		err = pno_addr_from(sa, len, &peer);
	if (!err && pno_addr_to_many(&peer))
		err = ENETUNREACH;
	if (err)
		return err;
	if (s->rebound)
		bound_again(s);
	anew(s);
	switch (decide(ses, PNO_RULE_CONNECT, &peer, &err)) {
	case KERNEL:
		return connect_in_kernel(s, fd, ses);
	case REFUSE:
		return err;
	case OFFLOAD:
		break;
	}
	err = start_connect(s, fd, ses, &peer);
	return err ? err : wait_connected(s);
}
