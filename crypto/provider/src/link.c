/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The connection to the key agent and the thread that keeps it.
 *
 * The thread begins with the first call of a process, not when the provider is
 * loaded: proxies fork in between, and threads do not survive that. It alone
 * opens, reads and closes the connection. It blocks all signals. It has a
 * working directory of its own (unshare), which lets it connect by way of the
 * socket's directory, opened before a chroot, where the path leads nowhere.
 *
 * Without a connection and with something to ask it connects, again and again
 * with pauses of 1 to 50 ms. Without anything to ask it sleeps. An agent that
 * says what is no message is treated like one that is gone, and so is one that
 * owes an answer for longer than protocol.h allows.
 */
#include <errno.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent.h"

#define STACK     (128u << 10)
#define MAX_PAUSE 50             /* ms between attempts to connect, at most */
#define GREETING  500            /* ms that an agent may take to say welcome */
#define TICK      50             /* ms between looks at deadlines */
#define LINGER    (1000 * PNO_MS) /* that the thread ticks on after the last call */

static void failed(struct pno_agent *a, const char *what, const char *why)
{
	uint64_t now = pno_now();

	snprintf(a->why, sizeof a->why, "%s: %s", what, why);
	if (!a->gone_since)
		a->gone_since = now;
	a->backoff_ms = a->backoff_ms ? 2 * a->backoff_ms : 1;
	if (a->backoff_ms > MAX_PAUSE)
		a->backoff_ms = MAX_PAUSE;
	a->retry_at = now + a->backoff_ms * PNO_MS;
}

static void disconnect(struct pno_agent *a, const char *why)
{
	close(a->fd);
	a->fd = -1;
	pno_agent_requeue(a);
	failed(a, a->addr.sun_path, why);
}

/* True if the directory is the one that was opened: a program that closes all
 * descriptors may have reused its number. */
static bool same_dir(const struct pno_agent *a)
{
	struct stat st;

	return a->dir >= 0 && !fstat(a->dir, &st) && st.st_dev == a->dir_dev && st.st_ino == a->dir_ino;
}

static int connect_socket(const struct pno_agent *a, bool own_cwd)
{
	struct sockaddr_un near = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int err;

	if (fd < 0)
		return -1;
	if (!connect(fd, (const struct sockaddr *)&a->addr, sizeof a->addr))
		return fd;
	err = errno;
	if (err == ENOENT && own_cwd && same_dir(a) && !fchdir(a->dir)) {
		memcpy(near.sun_path, a->base, strlen(a->base));
		if (!connect(fd, (const struct sockaddr *)&near, sizeof near))
			return fd;
		err = errno;
	}
	close(fd);
	errno = err;
	return -1;
}

/* Says hello and reads the answer. NULL, or what is wrong with it. */
static const char *greet(struct pno_agent *a, int fd, struct pno_message *m)
{
	struct pollfd p[2] = { { .fd = fd, .events = POLLIN }, { .fd = a->wake, .events = POLLIN } };
	struct pno_agent_hello hello;
	uint64_t until = pno_now() + GREETING * PNO_MS;
	ssize_t n;

	pno_wire_hello(&hello, (uint32_t)getpid(), program_invocation_short_name);
	if (send(fd, &hello, sizeof hello, MSG_NOSIGNAL) < 0)
		return strerrordesc_np(errno);
	while (!p[0].revents) {
		uint64_t now = pno_now(), seen;

		if (now >= until)
			return "no answer to hello";
		poll(p, 2, (int)((until - now) / PNO_MS) + 1);
		if (p[1].revents && read(a->wake, &seen, sizeof seen) > 0) {
			bool stop;

			pthread_mutex_lock(&a->lock);
			stop = a->stop;
			pthread_mutex_unlock(&a->lock);
			if (stop)
				return "stopped";
		}
	}
	n = recv(fd, a->packet, PNO_AGENT_PACKET, MSG_DONTWAIT | MSG_TRUNC);
	if (n <= 0)
		return n < 0 ? strerrordesc_np(errno) : "closed instead of welcome";
	if (n > PNO_AGENT_PACKET || pno_wire_next(a->packet, (size_t)n, m) != (size_t)n)
		return "not a key agent: malformed welcome";
	if (m->type == PNO_AGENT_REFUSED)
		return *m->text ? m->text : "refused";
	return m->type == PNO_AGENT_WELCOME ? NULL : "not a key agent: no welcome";
}

/* Called with the lock, lets go of it meanwhile. */
static void dial(struct pno_agent *a, bool own_cwd)
{
	struct pno_message m;
	const char *why;
	int fd;

	pthread_mutex_unlock(&a->lock);
	fd = connect_socket(a, own_cwd);
	why = fd < 0 ? strerrordesc_np(errno) : greet(a, fd, &m);
	pthread_mutex_lock(&a->lock);
	if (why) {
		if (fd >= 0)
			close(fd);
		failed(a, a->addr.sun_path, why);
		return;
	}
	a->fd = fd;
	a->max_inflight = m.max_inflight;
	a->max_timeout_us = m.max_timeout_us;
	pno_agent_here(a);
}

/* Reads what is there. NULL, or why the connection is over. Called with the
 * lock, lets go of it meanwhile. */
static const char *receive(struct pno_agent *a)
{
	for (;;) {
		struct pno_message m;
		size_t size, at = 0;
		ssize_t n;

		pthread_mutex_unlock(&a->lock);
		n = recv(a->fd, a->packet, PNO_AGENT_PACKET, MSG_DONTWAIT | MSG_TRUNC);
		pthread_mutex_lock(&a->lock);
		if (n < 0)
			return errno == EAGAIN || errno == EINTR ? NULL : strerrordesc_np(errno);
		if (!n)
			return "the agent has closed the connection";
		if (n > PNO_AGENT_PACKET)
			return "the agent sent a packet that is too long";
		for (; at < (size_t)n; at += size) {
			size = pno_wire_next(a->packet + at, (size_t)n - at, &m);
			if (!size || m.type != PNO_AGENT_RESULT)
				return "the agent sent what is no answer";
			if (!pno_agent_result(a, &m))
				return "the agent answered what nobody asked";
			a->backoff_ms = 0;
		}
		OPENSSL_cleanse(a->packet, (size_t)n);
	}
}

/* How long the thread may sleep, in ms; -1 without limit. */
static int nap(struct pno_agent *a, uint64_t now, uint64_t *busy)
{
	if (!TAILQ_EMPTY(&a->queued) || !TAILQ_EMPTY(&a->sent))
		*busy = now;
	if (a->fd < 0 && !TAILQ_EMPTY(&a->queued))
		return now < a->retry_at ? (int)((a->retry_at - now) / PNO_MS) + 1 : 0;
	if (now - *busy < LINGER)
		return TICK;
	a->dozing = true;
	return -1;
}

static void turn(struct pno_agent *a, bool own_cwd, uint64_t *busy)
{
	struct pollfd p[2] = { { .fd = a->wake, .events = POLLIN }, { .fd = -1 } };
	const char *over = NULL;
	uint64_t now = pno_now(), seen;
	int ms;

	if (!pno_agent_expire(a, now) && a->fd >= 0)
		disconnect(a, "the agent owes answers");
	if (a->fd < 0 && !TAILQ_EMPTY(&a->queued) && now >= a->retry_at)
		dial(a, own_cwd);
	if (a->fd >= 0)
		pno_agent_flush(a);
	ms = nap(a, pno_now(), busy);
	if (a->fd >= 0)
		p[1] = (struct pollfd){ .fd = a->fd, .events = (short)(POLLIN | (a->full ? POLLOUT : 0)) };
	if (!a->broken) {
		pthread_mutex_unlock(&a->lock);
		poll(p, 2, ms);
		pthread_mutex_lock(&a->lock);
	}
	a->dozing = false;
	if (p[0].revents && read(a->wake, &seen, sizeof seen) < 0)
		return; /* another has read it */
	if (p[1].revents & (POLLIN | POLLHUP | POLLERR))
		over = receive(a);
	if (p[1].revents & POLLOUT)
		a->full = false;
	if (over || a->broken)
		disconnect(a, over ? over : "the agent has closed the connection");
}

static void *run(void *arg)
{
	struct pno_agent *a = arg;
	bool own_cwd = !unshare(CLONE_FS);
	uint64_t busy = pno_now();

	pthread_setname_np(pthread_self(), "pno-keys");
	pthread_mutex_lock(&a->lock);
	while (!a->stop)
		turn(a, own_cwd, &busy);
	pthread_mutex_unlock(&a->lock);
	return NULL;
}

bool pno_link_start(struct pno_agent *a)
{
	pthread_attr_t attr;
	sigset_t every, before;
	int err;

	if (!a->packet)
		a->packet = malloc(PNO_AGENT_PACKET);
	a->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (!a->packet || a->wake < 0)
		return false;
	sigfillset(&every);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK);
	pthread_sigmask(SIG_BLOCK, &every, &before);
	err = pthread_create(&a->thread, &attr, run, a);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attr);
	if (err) {
		close(a->wake);
		a->wake = -1;
		return false;
	}
	a->running = true;
	return true;
}
