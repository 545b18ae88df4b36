/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The life of a datagram socket: whose it is, its names, its end.
 */
#include "udp.h"

#include <errno.h>
#include <string.h>

#include "epoll.h"
#include "log.h"
#include "policy.h"
#include "quiet.h"
#include "real.h"
#include "stats.h"

/* The unspecified address as a destination is this host. */
static void settle_peer(struct pno_addr *a)
{
	static const uint8_t none[16];

	if (memcmp(a->ip, none, sizeof none))
		return;
	if (a->family == 4) {
		a->ip[0] = 127;
		a->ip[3] = 1;
	} else {
		a->ip[15] = 1;
	}
}

static bool serves(const struct pno_session *ses)
{
	return ses && (ses->features & PNO_FEATURE_UDP);
}

static void count_kernel(const struct pno_session *ses)
{
	if (!ses)
		pno_count(sockets_kernel_no_hostd);
	else if (!serves(ses))
		pno_count(sockets_kernel_udp);
	else
		pno_count(sockets_kernel_policy);
}

/* What the policy says of a fresh socket's first address. */
static enum pno_way decide(struct pno_session *ses, int op, const struct pno_addr *a, int *err)
{
	int action = serves(ses) ? pno_policy(ses, op, PNO_PROTO_UDP, a) : PNO_ACTION_KERNEL;

	*err = ses ? EACCES : pno_session_refusal();
	if (action == PNO_ACTION_REFUSE || (!ses && *err)) {
		pno_count(sockets_refused);
		return PNO_WAY_ERROR;
	}
	if (action == PNO_ACTION_OFFLOAD && pno_addr_to_many(a)) {
		pno_count(sockets_kernel_multicast);
		return PNO_WAY_KERNEL;
	}
	if (action == PNO_ACTION_OFFLOAD)
		return PNO_WAY_DPU;
	count_kernel(ses);
	return PNO_WAY_KERNEL;
}

static int offload(struct pno_sock *s, int fd, struct pno_session *ses, const struct pno_addr *local,
		   const struct pno_addr *peer)
{
	static const struct pno_addr open;
	int err = pno_udp_open(s, fd, ses, local ? *local : open, peer);

	if (err)
		return err;
	s->udp->chosen = !local;
	s->udp->loose = !local || (!local->port && !memcmp(local->ip, open.ip, sizeof open.ip));
	s->state = PNO_DGRAM;
	pno_count(sockets_offloaded);
	pno_count(sockets_udp);
	pno_udp_send_opts(s, fd);
	pno_sock_refresh(s);
	pno_epoll_convert(s);
	pno_sock_event(s, EPOLLIN | EPOLLRDNORM | EPOLLOUT | EPOLLWRNORM);
	return 0;
}

int pno_udp_revive(struct pno_sock *s, int fd)
{
	struct pno_addr local = pno_sock_local(s), peer = pno_sock_peer(s);
	struct pno_session *ses = s->ses;
	uint32_t generation = s->generation;
	int err;

	pno_sock_unlock(s);
	if (fd >= 0)
		ses = pno_session_get();
	pno_lock(&s->lock);
	if (s->generation != generation)
		return EBADF;
	if (s->state != PNO_DGRAM || !s->udp->lost)
		return 0;
	if (fd < 0 || !serves(ses))
		return ENETDOWN;
	if (s->udp->loose)
		local.port = 0;
	err = pno_udp_open(s, fd, ses, local, peer.family ? &peer : NULL);
	if (s->generation != generation)
		return EBADF;
	if (err) {
		pno_sock_set_local(s, &local);
		pno_sock_set_peer(s, &peer);
		return ENETDOWN;
	}
	s->udp->lost = false;
	pno_udp_send_opts(s, fd);
	pno_epoll_adopted(s);
	pno_sock_event(s, EPOLLOUT | EPOLLWRNORM);
	return 0;
}

static bool only_v6(const struct pno_sock *s, int fd)
{
	int v = 0;
	socklen_t len = sizeof v;

	return s->domain == AF_INET6 && real.getsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &v, &len) == 0 && v;
}

/* The port that the kernel has given a fresh socket, by a send that named
 * nobody: the program may know it. 0: none. */
static uint16_t kernel_port(const struct pno_sock *s, int fd)
{
	struct sockaddr_storage sa;
	socklen_t len = sizeof sa;
	struct pno_addr a;

	if (likely(!s->kernel_bound) || real.getsockname(fd, (struct sockaddr *)&sa, &len) < 0 ||
	    pno_addr_from((struct sockaddr *)&sa, len, &a))
		return 0;
	return a.port;
}

/* Bound by connect or a send: to that port, if it can be had. */
static int offload_unbound(struct pno_sock *s, int fd, struct pno_session *ses, const struct pno_addr *peer)
{
	struct pno_addr any = { .family = peer ? peer->family : s->domain == AF_INET6 ? 6 : 4 };
	int err = EADDRINUSE;

	any.port = kernel_port(s, fd);
	if (unlikely(any.port))
		err = offload(s, fd, ses, &any, peer);
	if (likely(err == EADDRINUSE)) {
		any.port = 0;
		err = offload(s, fd, ses, peer ? NULL : &any, peer);
	}
	if (!err) {
		s->udp->chosen = s->udp->loose = true;
		s->udp->only_v6 = only_v6(s, fd);
	}
	return err;
}

/* An errno, or 0: unlocked, and the kernel's for good. */
static int leave(struct pno_sock *s, int fd)
{
	struct sockaddr_storage sa;
	socklen_t len = sizeof sa;
	struct pno_session *ses = s->ses;
	struct pno_addr local;

	if (s->state == PNO_DGRAM) {
		local = pno_sock_local(s);
		pno_addr_to(&local, s->domain, (struct sockaddr *)&sa, &len);
		if (!s->udp->chosen && real.bind(fd, (struct sockaddr *)&sa, len) < 0)
			return ENETUNREACH; /* an address that only the DPU has */
		pno_udp_release(s);
		pno_epoll_revert(s);
		count_kernel(ses);
	}
	pno_sock_to_kernel(s, fd);
	return 0;
}

static bool whole_name(const struct pno_sock *s, socklen_t len)
{
	return len >= (s->domain == AF_INET6 ? offsetof(struct sockaddr_in6, sin6_scope_id) : sizeof(struct sockaddr_in));
}

int pno_udp_bind(struct pno_sock *s, int fd, struct pno_session *ses, const struct sockaddr *sa, socklen_t len)
{
	enum pno_way way = PNO_WAY_KERNEL;
	struct pno_addr a;
	int err = EINVAL;

	if (s->state == PNO_FRESH && !kernel_port(s, fd) && pno_addr_from(sa, len, &a) == 0 && sa->sa_family == s->domain) {
		way = decide(ses, PNO_RULE_LISTEN, &a, &err);
		if (way == PNO_WAY_DPU)
			err = offload(s, fd, ses, &a, NULL);
		if (way == PNO_WAY_DPU && !err && s->local.family == 6)
			pno_sock_only_v6(s, fd);
		if (way == PNO_WAY_DPU && !err)
			s->udp->only_v6 = only_v6(s, fd);
	} else if (s->state != PNO_FRESH) {
		way = PNO_WAY_ERROR; /* bound already, but the family comes first */
		if (whole_name(s, len) && sa->sa_family != s->domain)
			err = EAFNOSUPPORT;
	}
	if (way != PNO_WAY_KERNEL) {
		pno_sock_unlock(s);
		return err;
	}
	/* What is wrong with the arguments, the kernel knows best. */
	if (real.bind(fd, sa, len) < 0) {
		err = errno;
		pno_sock_unlock(s);
		return err;
	}
	pno_sock_to_kernel(s, fd);
	return 0;
}

/* A bound socket serves whom it likes: there, only what the policy keeps on
 * this host is not the DPU's. */
static enum pno_way way_offloaded(struct pno_sock *s, const struct pno_addr *to, int *err)
{
	int action;

	if (pno_addr_to_many(to))
		return PNO_WAY_KERNEL;
	action = pno_policy(s->ses, PNO_RULE_CONNECT, PNO_PROTO_UDP, to);
	if (action == PNO_ACTION_OFFLOAD || (!s->udp->chosen && !pno_addr_loopback(to)))
		return PNO_WAY_DPU;
	*err = EACCES;
	return action == PNO_ACTION_KERNEL ? PNO_WAY_KERNEL : PNO_WAY_ERROR;
}

static enum pno_way way_fresh(struct pno_sock *s, int fd, const struct pno_addr *to, int *err)
{
	enum pno_way way;
	struct pno_session *ses;
	uint32_t generation = s->generation;

	pno_sock_unlock(s);
	ses = pno_session_get();
	pno_lock(&s->lock);
	*err = EBADF;
	if (s->generation != generation)
		return PNO_WAY_ERROR;
	if (s->state != PNO_FRESH)
		return pno_udp_way(s, fd, to, err);
	way = decide(ses, PNO_RULE_CONNECT, to, err);
	if (way == PNO_WAY_DPU) {
		*err = offload_unbound(s, fd, ses, NULL);
		if (*err)
			return PNO_WAY_ERROR;
	}
	return way;
}

enum pno_way pno_udp_way(struct pno_sock *s, int fd, const struct pno_addr *to, int *err)
{
	struct pno_addr peer = *to;
	enum pno_way way;

	if (likely(s->state == PNO_DGRAM && !memcmp(&s->udp->fine, to, sizeof *to)))
		return PNO_WAY_DPU;
	settle_peer(&peer);
	way = s->state == PNO_FRESH ? way_fresh(s, fd, &peer, err)
				    : way_offloaded(s, &peer, err);
	switch (way) {
	case PNO_WAY_DPU:
		s->udp->fine = *to;
		return way;
	case PNO_WAY_ERROR:
		return way;
	case PNO_WAY_KERNEL:
		break;
	}
	if (s->state == PNO_DGRAM && s->udp->used) {
		/* It cannot be in two places. */
		pno_count(udp_mixed);
		pno_log_once("an offloaded UDP socket sends to an address that the policy leaves to the kernel: refused");
		*err = ENETUNREACH;
		return PNO_WAY_ERROR;
	}
	*err = leave(s, fd);
	return *err ? PNO_WAY_ERROR : PNO_WAY_KERNEL;
}

static int disconnect(struct pno_sock *s, int fd, const struct sockaddr *sa, socklen_t len)
{
	static const struct pno_addr none;
	int err;

	if (s->state == PNO_DGRAM && (s->udp->loose || s->udp->lost)) {
		/* The kernel gives up a port that nobody asked for. */
		if (s->kernel_bound)
			quiet_connect(fd, sa, len);
		s->kernel_bound = false;
		pno_udp_release(s);
		pno_epoll_revert(s);
		s->udp->lost = false;
		s->state = PNO_FRESH;
		s->ses = NULL;
		s->qp = NULL;
		pno_sock_refresh(s);
		err = 0;
	} else if (s->state == PNO_DGRAM) {
		err = pno_udp_aim(s, &none);
	} else {
		err = quiet_connect(fd, sa, len) < 0 ? errno : 0;
	}
	pno_sock_unlock(s);
	return err;
}

int pno_udp_connect(struct pno_sock *s, int fd, struct pno_session *ses, const struct sockaddr *sa, socklen_t len)
{
	struct pno_addr peer;
	enum pno_way way;
	int err;

	if (sa && len >= sizeof sa->sa_family && sa->sa_family == AF_UNSPEC)
		return disconnect(s, fd, sa, len);
	err = pno_addr_from(sa, len, &peer);
	if (!err && sa->sa_family != s->domain)
		err = EAFNOSUPPORT;
	if (!err && unlikely(s->domain == AF_INET6 && peer.family == 4 && only_v6(s, fd)))
		err = ENETUNREACH;
	if (!err && unlikely(s->udp->lost))
		err = pno_udp_revive(s, fd);
	if (err) {
		pno_sock_unlock(s);
		return err;
	}
	if (s->state == PNO_FRESH) {
		struct pno_addr to = peer;

		settle_peer(&to);
		way = decide(ses, PNO_RULE_CONNECT, &to, &err);
		if (way == PNO_WAY_DPU)
			err = offload_unbound(s, fd, ses, &to);
		else if (way == PNO_WAY_KERNEL)
			pno_sock_to_kernel(s, fd);
	} else {
		way = pno_udp_way(s, fd, &peer, &err);
		if (way == PNO_WAY_DPU)
			err = pno_udp_aim(s, &peer);
	}
	if (way == PNO_WAY_KERNEL)
		return quiet_connect(fd, sa, len) < 0 ? errno : 0;
	pno_sock_unlock(s);
	return err;
}

/* The kernel shuts an unconnected one as well, but says that it was none. */
int pno_udp_shutdown(struct pno_sock *s, int how)
{
	if (how < SHUT_RD || how > SHUT_RDWR)
		return EINVAL;
	s->shut_rd |= how != SHUT_WR;
	s->shut_wr |= how != SHUT_RD;
	pno_sock_event(s, EPOLLIN | EPOLLRDNORM | EPOLLRDHUP | EPOLLOUT | (s->shut_rd && s->shut_wr ? EPOLLHUP : 0));
	return s->peer.family ? 0 : ENOTCONN;
}
