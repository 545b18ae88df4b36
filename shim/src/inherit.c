/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Sockets that came from elsewhere: over exec (the image that made them is
 * gone, its descriptors are not), by SCM_RIGHTS or pidfd_getfd. The kernel knows such a
 * socket by its SO_COOKIE, and so does hostd if an offloaded listener was
 * registered under it, or what pass.c has made ready. Then dpud gives this
 * session a share of it.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>

#include "filestream.h"
#include "hostd.h"
#include "listener.h"
#include "log.h"
#include "pass.h"
#include "real.h"
#include "sock.h"
#include "stats.h"
#include "udp.h"

/* The cookie of a socket that the shim does not know yet; 0: none. */
static uint64_t candidate(int fd, int *domain)
{
	int type = 0, protocol = 0;
	socklen_t len = sizeof(int);
	uint64_t cookie = 0;

	if (fd < 0 || (unsigned)fd >= pno_nfds || pno_fd_obj(fd))
		return 0;
	if (real.getsockopt(fd, SOL_SOCKET, SO_DOMAIN, domain, &len) < 0)
		return 0;
	len = sizeof(int);
	if (real.getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) < 0 || (type != SOCK_STREAM && type != SOCK_DGRAM))
		return 0;
	len = sizeof(int);
	if (*domain == AF_UNIX) {
		if (!pno_pass_marked(fd))
			return 0;
	} else if ((*domain != AF_INET && *domain != AF_INET6) ||
		   real.getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &len) < 0 ||
		   (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP)) {
		return 0;
	}
	len = sizeof cookie;
	if (real.getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &len) < 0)
		return 0;
	return cookie;
}

struct wanted {
	uint64_t cookie;
	struct pno_sock *sock;
};

static void same_cookie(struct pno_sock *s, void *arg)
{
	struct wanted *w = arg;

	if (s->cookie == w->cookie && s->nfds)
		w->sock = s;
}

/* One more descriptor of a socket that we have already. */
static void alias(struct pno_sock *s, int fd)
{
	pno_lock(&s->lock);
	if (s->nfds && pno_fd_set(fd, (struct pno_obj *)s))
		s->nfds++;
	pno_unlock(&s->lock);
	pno_stdio_follow(fd);
}

static bool known(int fd, uint64_t cookie)
{
	struct wanted w = { cookie, pno_listener_by_cookie(cookie) };

	if (!w.sock)
		pno_sock_each(same_cookie, &w);
	if (w.sock)
		alias(w.sock, fd);
	return w.sock;
}

/* This process has the socket already, by fork: the DPU gives no second share. */
static bool held(struct pno_session *ses, int fd, const struct pno_msg_socket *m)
{
	unsigned shard = m->kind == PNO_SOCK_CONN && m->shard < ses->shards ? m->shard : 0;
	struct pno_sock *s = m->handle[shard] ? pno_handle_sock(ses, shard, m->handle[shard]) : NULL;

	if (s)
		alias(s, fd);
	return s;
}

/* A connection is claimed when it is first used, and then tells where its
 * streams stand. */
static bool take_over_connection(struct pno_sock *s, const struct pno_msg_socket *m)
{
	if (m->shard >= s->ses->shards || !m->handle[m->shard])
		return false;
	s->shard = m->shard;
	s->handle = m->handle[m->shard];
	s->qp = &s->ses->chan[0]->qp[s->shard];
	pno_sock_set_peer(s, &m->peer);
	s->state = PNO_OPEN;
	s->connect_told = s->pair = true;
	s->away = s->stranger = true;
	return pno_handle_enter(s->ses, s->shard, s->handle, s);
}

static bool take_over_bound(struct pno_sock *s, const struct pno_msg_socket *m)
{
	s->handle = m->handle[0];
	s->qp = &s->ses->chan[0]->qp[0];
	s->state = PNO_BOUND;
	s->bound = true;
	return s->handle && pno_handle_enter(s->ses, 0, s->handle, s);
}

static bool take_over_kind(struct pno_sock *s, const struct pno_msg_socket *m)
{
	switch (m->kind) {
	case PNO_SOCK_LISTENER:
		return pno_listener_inherit(s, m);
	case PNO_SOCK_CONN:
		s->cookie = m->cookie;
		return take_over_connection(s, m);
	case PNO_SOCK_BOUND:
		s->cookie = m->cookie;
		return m->proto == PNO_PROTO_UDP ? pno_udp_inherit(s, m) : take_over_bound(s, m);
	}
	return false;
}

static void take_over(struct pno_session *ses, int fd, int domain, const struct pno_msg_socket *m)
{
	struct pno_sock *s;

	if (held(ses, fd, m))
		return;
	if (m->kind == PNO_SOCK_CONN)
		domain = m->domain == AF_INET6 ? AF_INET6 : AF_INET;
	s = pno_sock_new(domain);
	if (!s)
		return;
	s->own_file = true;
	s->nfds = 1;
	s->ses = ses;
	pno_sock_set_local(s, &m->local);
	s->shared = s->common = true;
	if (!take_over_kind(s, m)) {
		pno_sock_free(s);
		return;
	}
	pno_share_recall(s, fd);
	pno_sock_refresh(s);
	pno_fd_set(fd, (struct pno_obj *)s);
	pno_stdio_follow(fd);
	pno_count(sockets_offloaded);
	pno_count(sockets_inherited);
}

static void same_file(struct pno_sock *s, void *arg)
{
	struct wanted *w = arg;
	uint64_t cookie = 0;
	socklen_t len = sizeof cookie;
	int fd;

	if (s->state != PNO_FRESH || (fd = pno_sock_descriptor(s)) < 0)
		return;
	if (real.getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &len) == 0 && cookie == w->cookie)
		w->sock = s;
}

/* Neither bound nor connected, as far as the kernel knows, and nobody else
 * knows better. */
static bool is_fresh(int fd, int type)
{
	union {
		struct sockaddr sa;
		struct sockaddr_in in;
		struct sockaddr_in6 in6;
	} a = { 0 };
	socklen_t len = sizeof a;
	struct tcp_info info = { 0 };

	if (real.getsockname(fd, &a.sa, &len) < 0)
		return false;
	if (a.sa.sa_family == AF_INET6 ? a.in6.sin6_port : a.in.sin_port)
		return false;
	if (type == SOCK_DGRAM)
		return true;
	len = sizeof info;
	return real.getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len) == 0 && info.tcpi_state == TCP_CLOSE;
}

/* A socket about which nothing is decided yet is undecided here, too. */
static void take_fresh(int fd, int domain, uint64_t cookie)
{
	struct wanted w = { cookie, NULL };
	struct pno_sock *s;
	int type = 0;
	socklen_t len = sizeof type;

	if (domain == AF_UNIX || real.getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) < 0 || !is_fresh(fd, type))
		return;
	pno_sock_each(same_file, &w);
	if (w.sock) {
		alias(w.sock, fd);
		return;
	}
	s = pno_sock_new(domain);
	if (s && type == SOCK_DGRAM && !pno_udp_new(s)) {
		pno_sock_free(s);
		return;
	}
	if (!s)
		return;
	s->own_file = true;
	s->nfds = 1;
	pno_share_recall(s, fd);
	if (!s->udp)
		pno_sock_recall_opts(s, fd);
	pno_sock_refresh(s);
	if (!pno_fd_set(fd, (struct pno_obj *)s))
		pno_sock_free(s);
}

/* True if hostd was asked. */
static bool look_up(int fd)
{
	struct pno_msg_lookup_socket req;
	struct pno_msg_socket ans;
	struct pno_session *ses;
	int domain, err;

	memset(&req, 0, sizeof req);
	req.cookie = candidate(fd, &domain);
	if (!req.cookie || known(fd, req.cookie))
		return false;
	ses = pno_session_get();
	if (!ses)
		return false;
	err = pno_hostd_ask(ses, &req, PNO_MSG_LOOKUP_SOCKET, sizeof req, fd,
			    &ans, PNO_MSG_SOCKET, sizeof ans, NULL);
	if (!err)
		take_over(ses, fd, domain, &ans);
	else if (err == ENOENT)
		take_fresh(fd, domain, req.cookie);
	else
		pno_log(PNO_ERROR, "inherited socket %d stays with the kernel: %s", fd, strerror(err));
	return true;
}

void pno_inherit_message(struct msghdr *m)
{
	int saved = errno;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
		int n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int), fd;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		for (int i = 0; i < n; i++) {
			memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
			look_up(fd);
		}
	}
	errno = saved;
}

bool pno_inherit_fetched(int fd)
{
	struct pno_obj *o;
	int saved = errno;

	look_up(fd);
	errno = saved;
	o = pno_fd_obj(fd);
	return !o || o->kind != PNO_KIND_SOCK || ((struct pno_sock *)o)->state != PNO_FRESH ||
	       ((struct pno_sock *)o)->nfds > 1;
}

void pno_inherit_all(void)
{
	DIR *d = opendir("/proc/self/fd");
	bool asked = false;
	struct dirent *e;

	if (!d)
		return;
	while ((e = readdir(d)))
		if (e->d_name[0] != '.')
			asked |= look_up(atoi(e->d_name));
	closedir(d);
	if (asked && pno_session_now())
		pno_hostd_ready(pno_session_now());
}
