/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The connection to the key agent and the thread that keeps it.
 *
 * The thread begins with the first key that is loaded, and once more in every
 * child of fork; the connection only with the first call. It begins that early
 * because HAProxy lets no thread be started (RLIMIT_NPROC of 0) once it serves,
 * and because HAProxy goes into a chroot: the thread leaves the process's idea
 * of root and working directory (unshare) before that, so that the path of the
 * agent's socket stays what it was, for later connections too. The chroot does
 * not hold for this thread, then. The thread blocks all signals, and alone opens,
 * reads and closes the connection.
 *
 * Without a connection and with something to ask it connects, again and again
 * with pauses of 1 to 50 ms. Without anything to ask it sleeps. An agent that
 * says what is no message is treated like one that is gone, and so is one that
 * owes an answer for longer than protocol.h allows.
 */
#include <errno.h>
#include <openssl/crypto.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent.h"

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

static int connect_socket(const struct pno_agent *a)
{
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int err;

	if (fd < 0 || !connect(fd, (const struct sockaddr *)&a->addr, sizeof a->addr))
		return fd;
	err = errno;
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
static void dial(struct pno_agent *a)
{
	struct pno_message m;
	uint64_t begun = pno_now();
	const char *why;
	int fd;

	pthread_mutex_unlock(&a->lock);
	fd = connect_socket(a);
	why = fd < 0 ? strerrordesc_np(errno) : greet(a, fd, &m);
	pthread_mutex_lock(&a->lock);
	a->tried = begun;
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

/* Reads one packet; the agent puts all that it has into one, and poll tells of
 * more. NULL, or why the connection is over. Called with the lock, lets go of it
 * meanwhile. */
static const char *receive(struct pno_agent *a)
{
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
	return NULL;
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

static void turn(struct pno_agent *a, uint64_t *busy)
{
	struct pollfd p[2] = { { .fd = a->wake, .events = POLLIN }, { .fd = -1 } };
	const char *over = NULL;
	uint64_t now = pno_now(), seen;
	int ms;

	if (now - a->looked >= TICK * PNO_MS) {
		a->looked = now;
		if (!pno_agent_expire(a, now) && a->fd >= 0)
			disconnect(a, "the agent owes answers");
	}
	if (a->fd < 0 && !TAILQ_EMPTY(&a->queued) && now >= a->retry_at) {
		dial(a);
		now = pno_now();
	}
	if (a->fd >= 0)
		pno_agent_flush(a);
	ms = nap(a, now, busy);
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
	uint64_t busy = pno_now();

	unshare(CLONE_FS); /* if not, the socket's path has to be good in the chroot, too */
	sem_post(&a->apart);
	pthread_setname_np(pthread_self(), "pno-keys");
	pthread_mutex_lock(&a->lock);
	while (!a->stop)
		turn(a, &busy);
	pthread_mutex_unlock(&a->lock);
	return NULL;
}

/* The stack is of the usual size: a program may have so many thread-local
 * variables (HAProxy has) that a small one does not hold them. */
bool pno_link_start(struct pno_agent *a)
{
	sigset_t every, before;
	int err;

	if (!a->packet)
		a->packet = malloc(PNO_AGENT_PACKET);
	a->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (!a->packet || a->wake < 0) {
		snprintf(a->why, sizeof a->why, "begin: %s", strerrordesc_np(errno));
		return false;
	}
	sigfillset(&every);
	pthread_sigmask(SIG_BLOCK, &every, &before);
	err = pthread_create(&a->thread, NULL, run, a);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (err) {
		snprintf(a->why, sizeof a->why, "start a thread: %s", strerrordesc_np(err));
		close(a->wake);
		a->wake = -1;
		return false;
	}
	a->running = true;
	while (sem_wait(&a->apart))
		; /* the program's next step may be chroot */
	return true;
}
