/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Entry points: the life of a socket from socket() to accept(), its names,
 * options and shutdown. Each looks up the descriptor; what is not offloaded
 * goes to the kernel unchanged.
 */
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "affinity.h"
#include "epoll.h"
#include "fault.h"
#include "listener.h"
#include "log.h"
#include "quiet.h"
#include "real.h"
#include "relay.h"
#include "stats.h"
#include "udp.h"
#include "wait.h"

static int give(int err)
{
	if (!err)
		return 0;
	errno = err;
	return -1;
}

PNO_EXPORT int socket(int domain, int type, int protocol)
{
	int kind = type & ~(SOCK_NONBLOCK | SOCK_CLOEXEC);
	struct pno_sock *s;
	int fd;

	PNO_ENTER();
	fd = real.socket(domain, type, protocol);
	if (fd < 0 || (domain != AF_INET && domain != AF_INET6))
		return fd;
	if (!(kind == SOCK_STREAM && (!protocol || protocol == IPPROTO_TCP)) &&
	    !(kind == SOCK_DGRAM && (!protocol || protocol == IPPROTO_UDP))) {
		pno_count(sockets_kernel_type);
		return fd;
	}
	s = pno_sock_new(domain);
	if (s && kind == SOCK_DGRAM && !pno_udp_new(s)) {
		pno_sock_free(s);
		s = NULL;
	}
	if (!s)
		return fd;
	s->own_file = s->made_here = true;
	s->nonblock = type & SOCK_NONBLOCK;
	s->nfds = 1;
	pno_sock_refresh(s);
	if (!pno_fd_set(fd, (struct pno_obj *)s)) {
		pno_count(sockets_kernel_fdrange);
		pno_sock_free(s);
	}
	return fd;
}

static bool ours(int fd)
{
	struct pno_obj *o = pno_fd_obj(fd);

	return o && o->kind == PNO_KIND_SOCK;
}

union address {
	struct sockaddr sa;
	struct sockaddr_storage storage;
};

/* The program's address, out of its hands. */
static int fetch(union address *to, const struct sockaddr *addr, socklen_t len)
{
	if (len > sizeof *to)
		return EINVAL;
	to->sa.sa_family = AF_UNSPEC;
	return pno_copy(to, addr, len) ? 0 : EFAULT;
}

PNO_EXPORT int bind(int fd, const struct sockaddr *addr, socklen_t len)
{
	union address sa;
	struct pno_session *ses;
	struct pno_sock *s;
	int err;

	PNO_ENTER();
	if (!ours(fd))
		return real.bind(fd, addr, len);
	ses = pno_session_get();
	s = pno_sock_lock(fd);
	if (!s)
		return real.bind(fd, addr, len);
	err = fetch(&sa, addr, len);
	if (s->udp && !err)
		return give(pno_udp_bind(s, fd, ses, &sa.sa, len));
	if (!err)
		err = pno_sock_bind(s, fd, ses, &sa.sa, len);
	pno_sock_unlock(s);
	return give(err);
}

PNO_EXPORT int listen(int fd, int backlog)
{
	struct pno_session *ses;
	struct pno_sock *s;
	int err;

	PNO_ENTER();
	if (!ours(fd))
		return real.listen(fd, backlog);
	ses = pno_session_get();
	s = pno_sock_lock(fd);
	if (!s || s->udp) {
		if (s)
			pno_sock_unlock(s);
		return real.listen(fd, backlog);
	}
	err = pno_sock_listen(s, fd, ses, backlog);
	if (err < 0) {
		pno_sock_to_kernel(s, fd);
		return 0;
	}
	pno_sock_unlock(s);
	return give(err);
}

PNO_EXPORT int connect(int fd, const struct sockaddr *addr, socklen_t len)
{
	union address sa;
	struct pno_session *ses;
	struct pno_sock *s;
	int err;

	PNO_ENTER_POINT();
	if (!ours(fd))
		return real.connect(fd, addr, len);
	ses = pno_session_get();
	s = pno_sock_lock(fd);
	if (!s)
		return real.connect(fd, addr, len);
	err = fetch(&sa, addr, len);
	if (s->udp && !err)
		return give(pno_udp_connect(s, fd, ses, &sa.sa, len));
	if (!err)
		err = pno_sock_connect(s, fd, ses, &sa.sa, len);
	if (err < 0) {
		pno_sock_to_kernel(s, fd);
		return real.connect(fd, addr, len);
	}
	pno_sock_unlock(s);
	return give(err);
}

/*
 * The descriptor of an accepted connection: a copy of one unbound socket. That
 * is the cheapest real file that says of itself that it is a socket.
 */
static atomic_int template = -1;

static int placeholder(int flags)
{
	int t = atomic_load_explicit(&template, memory_order_relaxed), none = -1;

	if (unlikely(t < 0)) {
		t = pno_fd_own(real.socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
		if (t < 0)
			return -1;
		if (!atomic_compare_exchange_strong(&template, &none, t)) {
			pno_fd_disown(t);
			t = none;
		}
	}
	return real.fcntl(t, flags & SOCK_CLOEXEC ? F_DUPFD_CLOEXEC : F_DUPFD, 0);
}

/* The child of a fork has closed all of its parent's own descriptors. */
void pno_placeholder_child(void)
{
	atomic_store(&template, -1);
}

/* Gives an unaccepted connection its descriptor. Listener locked. */
static int take(struct pno_sock *l, struct sockaddr *addr, socklen_t *len, int flags, int fd)
{
	struct pno_sock *c = pno_listener_take(l);
	struct pno_addr peer;
	int err;

	if (!c)
		return -EAGAIN;
	pno_lock(&c->lock);
	if (c->state == PNO_PARKED)
		c->state = PNO_OPEN;
	c->nfds = 1;
	c->nonblock = flags & SOCK_NONBLOCK;
	pno_sock_inherit_opts(c, l);
	if (addr)
		peer = pno_sock_peer(c);
	err = addr ? pno_addr_to(&peer, c->domain, addr, len) : 0;
	pno_sock_record(c, c->qp, (struct pno_record){ .op = PNO_OP_ACCEPTED, .sock = c->handle }, NULL);
	pno_sock_refresh(c);
	pno_fd_set(fd, (struct pno_obj *)c);
	pno_affinity_accepted(c);
	pno_unlock(&c->lock);
	pno_count(sockets_offloaded);
	pno_count(sockets_accepted);
	return err ? -err : fd; /* with an error, the connection is closed */
}

static bool subscribed(const struct pno_sock *l)
{
	for (unsigned i = 0; i < PNO_MAX_CHANNELS; i++)
		if (l->listener->q[i].users || l->listener->q[i].sticky)
			return true;
	return false;
}

/* There is no DPU: it may be back. */
static int wait_revival(struct pno_sock *l)
{
	struct timespec nap = { .tv_nsec = 100000000 };
	uint32_t generation = l->generation;
	bool nowait = l->nonblock;

	pno_sock_unlock(l);
	pno_listener_revive();
	if (!nowait)
		nanosleep(&nap, NULL);
	pno_lock(&l->lock);
	return l->generation != generation ? -EBADF : nowait ? -EAGAIN : 0;
}

/* Nothing is queued: looks once more, then waits. */
static int wait_connection(struct pno_sock *l, bool *looked, int64_t *deadline)
{
	struct pno_session *ses = l->ses;
	uint32_t generation = l->generation;
	uint64_t channels;
	int rc;

	if (unlikely(l->listener->lost))
		return wait_revival(l);
	if (unlikely(l->common) && !*looked)
		pno_share_attune(l);
	if (!l->nonblock || !subscribed(l))
		pno_listener_want(l, l->qp->chan, 0, true);
	if (!*looked) {
		*looked = true;
		channels = pno_sock_channels(l);
		pno_sock_unlock(l);
		for (; channels; channels &= channels - 1)
			pno_chan_drain(ses->chan[__builtin_ctzll(channels)]);
		pno_lock(&l->lock);
		return l->generation == generation ? 0 : -EBADF;
	}
	if (l->nonblock)
		return -EAGAIN;
	if (!*deadline) {
		*deadline = pno_deadline_within(l->rcv_millis);
		pno_interrupts_begin();
	}
	rc = pno_sock_wait(l, EPOLLIN, *deadline);
	return pno_wait_again(rc, *deadline) ? 0 : rc;
}

static int do_accept(int fd, struct sockaddr *addr, socklen_t *len, int flags)
{
	struct pno_sock *l = pno_sock_lock(fd);
	int64_t deadline = 0;
	bool looked = false;
	int got = -1, rc;

	if (!l || l->state == PNO_FRESH || l->udp) {
		if (l)
			pno_sock_unlock(l);
		return real.accept4(fd, addr, len, flags);
	}
	for (;;) {
		if (l->state != PNO_LISTENING || !l->ses || l->listener->stopped) {
			rc = l->ses ? -EINVAL : -ENETDOWN;
			break;
		}
		if (l->listener->parked) {
			if (got < 0)
				got = placeholder(flags);
			rc = got < 0 ? -errno : take(l, addr, len, flags, got);
			if (rc != -EAGAIN)
				break;
		}
		if (got >= 0) /* a wait may be left for good */
			quiet_close(got);
		got = -1;
		rc = wait_connection(l, &looked, &deadline);
		if (rc < 0)
			break;
	}
	pno_sock_unlock(l);
	if (unlikely(deadline && atomic_load_explicit(&pno_listener_unsettled, memory_order_relaxed)))
		pno_listener_settle(false); /* a poller came while this waited */
	if (rc < 0 && got >= 0)
		close(got);
	if (rc >= 0)
		return rc;
	errno = -rc;
	return -1;
}

PNO_EXPORT int accept4(int fd, struct sockaddr *addr, socklen_t *len, int flags)
{
	PNO_ENTER_POINT();
	if (likely(ours(fd))) {
		if (!(flags & ~(SOCK_NONBLOCK | SOCK_CLOEXEC)))
			return do_accept(fd, addr, len, flags);
		errno = EINVAL;
		return -1;
	}
	return real.accept4(fd, addr, len, flags);
}

PNO_EXPORT int accept(int fd, struct sockaddr *addr, socklen_t *len)
{
	PNO_ENTER_POINT();
	return ours(fd) ? do_accept(fd, addr, len, 0) : real.accept(fd, addr, len);
}

/* What the DPU has posted may change the answer to this. */
static bool news(const struct pno_sock *s)
{
	return (s->state == PNO_CONNECTING || s->state == PNO_OPEN) && s->qp && !s->away && pno_qp_moved(s->qp);
}

PNO_EXPORT int shutdown(int fd, int how)
{
	struct pno_sock *s;
	int err = 0;

	PNO_ENTER();
	s = pno_sock_lock(fd);
	if (!s || s->state == PNO_FRESH) {
		if (s)
			pno_sock_unlock(s);
		return real.shutdown(fd, how);
	}
	/* With both halves shut the DPU forgets what it holds. */
	if ((news(s) && !pno_sock_look(s)) ||
	    (unlikely(s->hold) && (how != SHUT_WR || s->shut_rd) && !pno_relay_fetch(s))) {
		err = EBADF;
	} else if (s->udp) {
		err = pno_udp_shutdown(s, how);
	} else if (how < SHUT_RD || how > SHUT_RDWR) {
		err = EINVAL;
	} else if (s->state == PNO_LISTENING && s->ses && !s->listener->lost) {
		if (s->listener->stopped)
			err = ENOTCONN;
		else if (how != SHUT_WR)
			pno_listener_stop(s);
		else
			pno_sock_event(s, PNO_STATE_CHANGE);
	} else if (s->state == PNO_CONNECTING) {
		err = pno_sock_disconnect(s, fd);
	} else if (s->state != PNO_OPEN || pno_sock_over(s)) {
		err = ENOTCONN;
		pno_sock_event(s, PNO_STATE_CHANGE); /* all the same */
	} else {
		s->shut_rd |= how != SHUT_WR;
		s->shut_wr |= how != SHUT_RD;
		s->connect_told = true; /* the next connect is EISCONN */
		/* Reading alone is shut on this side only: what comes later can
		 * still be read. With both shut the DPU answers data with RST. */
		if (s->shut_wr || s->shared)
			pno_sock_record(s, s->qp, (struct pno_record){
				.op = PNO_OP_SHUTDOWN, .sock = s->handle, .seq = s->tx_sent, .ack = pno_sock_consumed(s),
				.flags = !s->shut_wr ? PNO_FLAG_SHUT_NOTED : s->shut_rd ? 2 : 1 }, NULL);
		pno_sock_event(s, PNO_STATE_CHANGE);
	}
	pno_sock_unlock(s);
	return give(err);
}

PNO_EXPORT int getsockname(int fd, struct sockaddr *addr, socklen_t *len)
{
	struct pno_sock *s;
	struct pno_addr a;
	int err;

	PNO_ENTER();
	s = pno_sock_peek(fd);
	if (!s || !pno_sock_offloaded(s)) {
		if (s)
			pno_sock_unlock(s);
		return real.getsockname(fd, addr, len);
	}
	if (unlikely(s->state == PNO_CONNECTING && !s->local.port))
		pno_sock_settle(s);
	a = pno_sock_local(s);
	err = pno_addr_to(&a, s->domain, addr, len);
	pno_sock_unlock(s);
	return give(err);
}

PNO_EXPORT int getpeername(int fd, struct sockaddr *addr, socklen_t *len)
{
	struct pno_sock *s;
	struct pno_addr a;
	int err = 0;

	PNO_ENTER();
	s = pno_sock_peek(fd);
	if (!s || !pno_sock_offloaded(s)) {
		if (s)
			pno_sock_unlock(s);
		return real.getpeername(fd, addr, len);
	}
	if (news(s) && !pno_sock_look(s))
		err = EBADF;
	else if (s->udp ? !s->peer.family : s->state != PNO_OPEN || pno_sock_over(s))
		err = ENOTCONN;
	a = pno_sock_peer(s);
	if (!err)
		err = pno_addr_to(&a, s->domain, addr, len);
	pno_sock_unlock(s);
	return give(err);
}

/* What is looked at, at most; longer values are for the kernel. */
#define LONGEST_OPTION 64u

PNO_EXPORT int setsockopt(int fd, int level, int name, const void *val, socklen_t len)
{
	struct pno_sock *s;
	int err;

	PNO_ENTER();
	if (unlikely(pno_option_is_granted(level, name)) && ours(fd))
		pno_session_get();
	s = pno_sock_lock_here(fd);
	if (!s)
		return real.setsockopt(fd, level, name, val, len);
	if ((int)len < 0)
		err = EINVAL;
	else if (!pno_readable(val, len < LONGEST_OPTION ? len : LONGEST_OPTION))
		err = EFAULT;
	else
		err = s->udp ? pno_udp_setopt(s, fd, level, name, val, len)
			     : pno_sock_setopt(s, fd, level, name, val, len);
	pno_sock_unlock(s);
	return give(err);
}

PNO_EXPORT int getsockopt(int fd, int level, int name, void *val, socklen_t *len)
{
	uint8_t value[512];
	struct pno_sock *s;
	socklen_t n;
	int err;

	PNO_ENTER();
	s = pno_sock_lock_here(fd);
	if (!s)
		return real.getsockopt(fd, level, name, val, len);
	if (!pno_get32(len, &n))
		err = EFAULT;
	else if ((int)n < 0)
		err = EINVAL;
	else {
		n = n < sizeof value ? n : sizeof value;
		err = s->udp ? pno_udp_getopt(s, level, name, value, &n)
			     : pno_sock_getopt(s, level, name, value, &n);
	}
	pno_sock_unlock(s);
	if (err < 0)
		return real.getsockopt(fd, level, name, val, len);
	if (!err && !(pno_copy(val, value, n) && pno_put32(len, n)))
		err = EFAULT;
	return give(err);
}
