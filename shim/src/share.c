/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Sockets that several processes have, by fork, exec or SCM_RIGHTS.
 *
 * In the kernel they share an open file description. Here each process has its
 * own view of the socket, and two things stand for the description:
 *
 * The placeholder, which is one kernel file to all of them. It keeps the flags
 * (O_NONBLOCK) and the options, and getsockopt and F_GETFL are answered by it.
 * What the shim itself goes by (the time limits, O_NONBLOCK) it looks up there
 * when a call is about to wait, or to say that it would: a call that finds work
 * pays nothing. So a connection whose placeholder is a copy of the template
 * gets one of its own before a fork.
 *
 * The DPU, which keeps what is shut down, SO_LINGER, and what the stack does by
 * options. A holder that is not at home is told how the connection stands: that
 * somebody has shut it down, and whether there is anything to read, so that
 * epoll can say so. Who then reads claims it.
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <string.h>

#include "log.h"
#include "pass.h"
#include "quiet.h"
#include "real.h"
#include "sock.h"
#include "stats.h"
#include "udp.h"
#include "wait.h"

static const int generic[] = {
	SO_RCVTIMEO, SO_SNDTIMEO, SO_LINGER, SO_RCVLOWAT, SO_KEEPALIVE, SO_REUSEADDR, SO_OOBINLINE, SO_PRIORITY,
	SO_RCVBUF, SO_SNDBUF,
};

/* The kernel doubles what it is told of a buffer. */
static void set(int file, int level, int name, const void *val, socklen_t len)
{
	uint32_t n;

	if (level == SOL_SOCKET && (name == SO_RCVBUF || name == SO_SNDBUF) && len == sizeof n) {
		memcpy(&n, val, sizeof n);
		n /= 2;
		val = &n;
	}
	real.setsockopt(file, level, name, val, len);
}

void pno_share_furnish(const struct pno_sock *s, int fd, int file)
{
	const struct pno_opt *o;
	uint8_t val[64];

	for (size_t i = 0; i < sizeof generic / sizeof generic[0]; i++) {
		socklen_t len = sizeof val;

		if (s->own_file) {
			if (real.getsockopt(fd, SOL_SOCKET, generic[i], val, &len) == 0)
				set(file, SOL_SOCKET, generic[i], val, len);
		} else if ((o = pno_opt_find(s, SOL_SOCKET, generic[i]))) {
			set(file, SOL_SOCKET, generic[i], o->val, o->len);
		}
	}
}

static void replay(const struct pno_opt *o, void *file)
{
	set(*(int *)file, o->level, o->name, o->val, o->len);
}

void pno_share_file(struct pno_sock *s, int fd)
{
	int file;

	if (s->own_file || s->state != PNO_OPEN)
		return;
	file = real.socket(s->domain, SOCK_STREAM | SOCK_CLOEXEC | (s->nonblock ? SOCK_NONBLOCK : 0), IPPROTO_TCP);
	if (file < 0) {
		pno_log_once("no descriptor for a connection that fork shares: its flags are each process's own: %s",
			     strerror(errno));
		return;
	}
	if (s->append)
		real.fcntl(file, F_SETFL, O_APPEND | (s->nonblock ? O_NONBLOCK : 0));
	pno_opt_each(s, replay, &file);
	pno_pass_replace(s, fd, file);
	quiet_close(file);
}

static void get(int fd, int name, void *val, socklen_t len)
{
	uint8_t v[sizeof(struct timeval)];
	socklen_t n = len;

	if (real.getsockopt(fd, SOL_SOCKET, name, v, &n) == 0 && n == len)
		memcpy(val, v, len);
}

static void get_time(int fd, int name, uint32_t *millis)
{
	struct timeval t = { .tv_sec = -1 };

	get(fd, name, &t, sizeof t);
	if (t.tv_sec >= 0)
		*millis = pno_millis(&t);
}

static void get_limits(struct pno_sock *s, int fd)
{
	get_time(fd, SO_RCVTIMEO, &s->rcv_millis);
	get_time(fd, SO_SNDTIMEO, &s->snd_millis);
	if (!s->udp)
		get(fd, SO_RCVLOWAT, &s->rcvlowat, sizeof s->rcvlowat);
}

void pno_share_attune(struct pno_sock *s)
{
	int saved = errno, flags;

	if (pno_fd_obj(s->via) != (struct pno_obj *)s)
		s->via = pno_sock_descriptor(s);
	s->common = s->shared; /* who has been told that it is alone looks once more */
	if (!s->own_file || s->via < 0)
		return;
	flags = real.fcntl(s->via, F_GETFL);
	if (flags >= 0) {
		s->nonblock = flags & O_NONBLOCK;
		if (!s->nonblock || !s->common)
			get_limits(s, s->via);
	}
	errno = saved;
}

void pno_share_recall(struct pno_sock *s, int fd)
{
	int flags = real.fcntl(fd, F_GETFL);
	struct linger l = { 0 };

	s->nonblock = flags & O_NONBLOCK;
	s->append = flags & O_APPEND;
	get_limits(s, fd);
	get(fd, SO_LINGER, &l, sizeof l);
	s->linger_reset = l.l_onoff && !l.l_linger;
	if (s->udp)
		pno_udp_recall(s, fd);
}

void pno_share_standing(struct pno_sock *s, const struct pno_record *r)
{
	uint32_t before = atomic_load_explicit(&s->mask, memory_order_relaxed), news;
	bool more = s->away && r->seq != s->stood && (r->ack & PNO_STANDING_READABLE);

	if (s->state == PNO_OPEN) {
		s->shut_rd |= (r->ack & PNO_STANDING_SHUT_READ) != 0;
		s->shut_wr |= (r->ack & PNO_STANDING_SHUT_SEND) != 0;
	}
	s->standing = r->ack;
	s->stood = r->seq;
	pno_sock_record(s, s->qp, (struct pno_record){ .op = PNO_OP_HEARD, .sock = s->handle }, NULL);
	pno_sock_refresh(s);
	news = atomic_load_explicit(&s->mask, memory_order_relaxed) & ~before;
	if (more)
		news |= EPOLLIN | EPOLLRDNORM;
	if (news)
		pno_sock_event(s, news);
}
