/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Waits that never return: left by a handler's jump, cancelled, or ended by
 * pthread_exit in a handler. Nothing of them may stay behind: no sleeper of a
 * channel, no waiter of a socket, no sleeper of an epoll instance.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "epoll.h"
#include "fake_dpu.h"

#define ROUNDS 300

#if defined(__SANITIZE_ADDRESS__)
#define UNWINDS 0 /* it does not follow threads that end in the middle of C code */
#else
#define UNWINDS 1
#endif
#if defined(__SANITIZE_THREAD__)
#define HANDLERS 0 /* it calls them in the middle of sections, see interrupt.c */
#else
#define HANDLERS 1
#endif

enum wait { RECV, POLL, POLL_MANY, SELECT, EPOLL, ACCEPT, WAITS };

static int fd, ep, listener;

static int dial(uint16_t port)
{
	struct sockaddr_in sa = { .sin_family = AF_INET, .sin_port = htons(port) };
	int s = socket(AF_INET, SOCK_STREAM, 0);

	inet_pton(AF_INET, "198.18.0.1", &sa.sin_addr);
	CHECK(s >= 0 && connect(s, (struct sockaddr *)&sa, sizeof sa) == 0);
	return s;
}

static void wait_for(enum wait how)
{
	struct pollfd many[100] = { { 0 } };
	struct epoll_event ev;
	fd_set set;
	char c;

	for (int i = 0; i < 100; i++)
		many[i] = (struct pollfd){ .fd = i ? -1 : fd, .events = POLLIN };
	FD_ZERO(&set);
	FD_SET(fd, &set);
	switch (how) {
	case RECV:
		recv(fd, &c, 1, 0);
		break;
	case POLL:
		poll(many, 1, -1);
		break;
	case POLL_MANY:
		poll(many, 100, -1);
		break;
	case SELECT:
		select(fd + 1, &set, NULL, NULL, NULL);
		break;
	case EPOLL:
		epoll_wait(ep, &ev, 1, -1);
		break;
	case ACCEPT:
		accept(listener, NULL, NULL);
		break;
	case WAITS:
		break;
	}
}

static void none_left(void)
{
	struct pno_session *ses = pno_session_now();
	struct pno_sock *s = pno_sock_peek(fd);

	CHECK(s && s->waiters == 0);
	pno_sock_unlock(s);
	s = pno_sock_peek(listener);
	CHECK(s && s->waiters == 0);
	pno_sock_unlock(s);
	for (unsigned i = 0; i < atomic_load(&ses->nchan); i++)
		CHECK(ses->chan[i]->sleepers == 0);
	CHECK(pno_epoll_at(ep)->sleepers == 0 && pno_epoll_at(ep)->raw == 0);
	CHECK(pno_waits_for == NULL);
}

static sigjmp_buf out;

static void jump(int sig)
{
	(void)sig;
	siglongjmp(out, 1);
}

static void arm(int us)
{
	struct itimerval t = { .it_value.tv_usec = us };

	CHECK(setitimer(ITIMER_REAL, &t, NULL) == 0);
}

static void jumps(bool own_stack)
{
	static char room[64 << 10];
	struct sigaction a = { .sa_handler = jump, .sa_flags = own_stack ? SA_ONSTACK : 0 };
	stack_t st = { .ss_sp = room, .ss_size = sizeof room };

	CHECK(sigaltstack(&st, NULL) == 0 && sigaction(SIGALRM, &a, NULL) == 0);
	for (volatile int i = 0; i < ROUNDS; i++) {
		if (sigsetjmp(out, 1) == 0) {
			arm(100 + i % 7 * 50);
			for (;;)
				wait_for(i % WAITS);
		}
		none_left();
	}
	st.ss_flags = SS_DISABLE;
	CHECK(sigaltstack(&st, NULL) == 0);
}

static sigjmp_buf inner;
static volatile sig_atomic_t nested;

/* A handler that waits itself, and leaves that wait, but not the one that it
 * has interrupted. */
static void within(int sig)
{
	(void)sig;
	if (nested++) {
		siglongjmp(inner, 1);
	} else if (sigsetjmp(inner, 1) == 0) {
		sigset_t set;

		sigemptyset(&set);
		sigaddset(&set, SIGALRM);
		pthread_sigmask(SIG_UNBLOCK, &set, NULL);
		arm(500);
		for (;;)
			wait_for(POLL);
	}
}

static void nesting(void)
{
	struct sigaction a = { .sa_handler = within };
	char c;

	CHECK(sigaction(SIGALRM, &a, NULL) == 0);
	for (int i = 0; i < 50; i++) {
		nested = 0;
		arm(500);
		errno = 0;
		CHECK(recv(fd, &c, 1, 0) == -1 && errno == EINTR && nested == 2);
		none_left();
	}
}

static _Atomic bool cleaned, waiting;

static void clean(void *arg)
{
	(void)arg;
	cleaned = true;
}

static void *waits(void *arg)
{
	enum wait *how = arg;

	pthread_cleanup_push(clean, NULL);
	waiting = true;
	for (;;)
		wait_for(*how);
	pthread_cleanup_pop(0);
	return NULL;
}

static void leave(int sig)
{
	(void)sig;
	pthread_exit(PTHREAD_CANCELED);
}

static void threads(bool cancel)
{
	struct sigaction a = { .sa_handler = leave };

	CHECK(sigaction(SIGUSR1, &a, NULL) == 0);
	for (int i = 0; i < ROUNDS; i++) {
		enum wait how = i % WAITS;
		pthread_t t;
		void *rc;

		cleaned = waiting = false;
		CHECK(!pthread_create(&t, NULL, waits, &how));
		while (!waiting)
			usleep(10);
		usleep(i % 5 * 100);
		CHECK(!(cancel ? pthread_cancel(t) : pthread_kill(t, SIGUSR1)));
		CHECK(!pthread_join(t, &rc) && rc == PTHREAD_CANCELED && cleaned);
		none_left();
	}
}

/* A thread that never finds nothing to do is cancelled, too. */
static void *busy(void *arg)
{
	char b[64];

	waiting = true;
	for (;;) {
		CHECK(send(*(int *)arg, "x", 1, 0) == 1);
		CHECK(recv(*(int *)arg, b, sizeof b, MSG_DONTWAIT) != 0);
	}
	return NULL;
}

static void busy_ones(void)
{
	for (int i = 0; i < 30; i++) {
		int s = dial(PORT_ECHO);
		pthread_t t;
		void *rc;

		waiting = false;
		CHECK(!pthread_create(&t, NULL, busy, &s));
		while (!waiting)
			usleep(10);
		usleep(200);
		CHECK(!pthread_cancel(t) && !pthread_join(t, &rc) && rc == PTHREAD_CANCELED);
		CHECK(send(s, "y", 1, MSG_DONTWAIT) == 1 || errno == EAGAIN);
		close(s);
	}
}

int main(void)
{
	struct sockaddr_in any = { .sin_family = AF_INET };
	struct epoll_event ev = { .events = EPOLLIN };
	char c;

	alarm(240);
	fake_start(1, PNO_MIN_RING_SIZE * 2);
	fd = dial(PORT_ECHO);
	listener = socket(AF_INET, SOCK_STREAM, 0);
	inet_pton(AF_INET, "198.18.0.2", &any.sin_addr);
	CHECK(bind(listener, (struct sockaddr *)&any, sizeof any) == 0 && listen(listener, 5) == 0);
	ep = epoll_create1(0);
	CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev) == 0);
	if (HANDLERS) {
		jumps(false);
		jumps(true);
		nesting();
	}
	if (UNWINDS) {
		threads(true);
		busy_ones();
	}
	if (HANDLERS && UNWINDS) {
		threads(false); /* libc has made ready for it, outside of any handler */
		jumps(false);   /* as a process that has had threads */
	}
	CHECK(send(fd, "x", 1, 0) == 1 && recv(fd, &c, 1, 0) == 1);
	fake_stop();
	printf("ok stay\n");
	return 0;
}
