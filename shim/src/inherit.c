/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Sockets that came from elsewhere: over exec (the image that made them is
 * gone, its descriptors are not) or by SCM_RIGHTS. The kernel knows such a
 * socket by its SO_COOKIE, and so does hostd if an offloaded listener was
 * registered under it. Then dpud gives this session a share of the listener.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "hostd.h"
#include "log.h"
#include "real.h"
#include "sock.h"
#include "stats.h"

/* The cookie of a TCP socket that the shim does not know yet; 0: none. */
static uint64_t candidate(int fd, int *domain)
{
	int type = 0, protocol = 0;
	socklen_t len = sizeof(int);
	uint64_t cookie = 0;

	if (fd < 0 || (unsigned)fd >= pno_nfds || pno_fd_obj(fd))
		return 0;
	if (real.getsockopt(fd, SOL_SOCKET, SO_DOMAIN, domain, &len) < 0 ||
	    (*domain != AF_INET && *domain != AF_INET6))
		return 0;
	len = sizeof(int);
	if (real.getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) < 0 || type != SOCK_STREAM)
		return 0;
	len = sizeof(int);
	if (real.getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &len) < 0 || protocol != IPPROTO_TCP)
		return 0;
	len = sizeof cookie;
	if (real.getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &len) < 0)
		return 0;
	return cookie;
}

/* Another descriptor of a socket that we have already. */
static bool known(int fd, uint64_t cookie)
{
	struct pno_sock *s = pno_listener_by_cookie(cookie);

	if (!s)
		return false;
	pno_lock(&s->lock);
	if (s->state == PNO_LISTENING && pno_fd_set(fd, (struct pno_obj *)s))
		s->nfds++;
	pno_unlock(&s->lock);
	return true;
}

static void take_over(struct pno_session *ses, int fd, int domain, const struct pno_msg_socket *m)
{
	struct pno_sock *s = pno_sock_new(domain);

	if (!s)
		return;
	s->own_file = true;
	s->nfds = 1;
	s->ses = ses;
	s->local = m->local;
	s->shared = true;
	s->nonblock = real.fcntl(fd, F_GETFL) & O_NONBLOCK;
	if (!pno_listener_inherit(s, m)) {
		pno_sock_free(s);
		return;
	}
	pno_fd_set(fd, (struct pno_obj *)s);
	pno_count(sockets_offloaded);
	pno_count(sockets_inherited);
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
	if (!err && ans.kind == PNO_SOCK_LISTENER)
		take_over(ses, fd, domain, &ans);
	else if (err && err != ENOENT)
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
