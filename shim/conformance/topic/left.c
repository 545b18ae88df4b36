/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Calls that never return: a handler leaves them by siglongjmp, as programs do
 * for time limits, or the thread is cancelled, or ends itself in a handler. What
 * waits afterwards waits as ever: it sleeps all the time, and no descriptor or
 * memory is gone.
 *
 * conf: not sanitized: ASan does not follow threads that end in the middle of C
 * code. What it does follow, shim/test/stay_test.c has.
 */
#include "conf.h"

#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/time.h>

enum call { RECV, RECVMSG, ACCEPT, POLL, PPOLL, SELECT, EPOLL, SEND, DATAGRAM, READ, CALLS };

#define JUMPS 5000

static int c, s, l, full, peer, ep, d;
static struct sockaddr_storage l_at;
static char big[1 << 16];

static void wait_in(enum call what)
{
	struct iovec iov = { big, 8 };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1 };
	struct pollfd many[70];
	struct epoll_event ev;
	fd_set set;

	for (int i = 0; i < 70; i++)
		many[i] = (struct pollfd){ .fd = i ? -1 : c, .events = POLLIN };
	FD_ZERO(&set);
	FD_SET(c, &set);
	switch (what) {
	case RECV:
		recv(c, big, 8, 0);
		break;
	case RECVMSG:
		recvmsg(c, &m, 0);
		break;
	case ACCEPT:
		accept(l, NULL, NULL);
		break;
	case POLL:
		poll(many, 1, -1);
		break;
	case PPOLL:
		ppoll(many, 70, NULL, NULL);
		break;
	case SELECT:
		select(c + 1, &set, NULL, NULL, NULL);
		break;
	case EPOLL:
		epoll_wait(ep, &ev, 1, -1);
		break;
	case SEND:
		send(full, big, sizeof big, 0);
		break;
	case DATAGRAM:
		recv(d, big, 8, 0);
		break;
	case READ:
		read(c, big, 8);
		break;
	case CALLS:
		break;
	}
}

static sigjmp_buf out;

static void jump(int sig)
{
	(void)sig;
	siglongjmp(out, 1);
}

static void on_alarm(void (*fn)(int), int flags)
{
	struct sigaction a = { .sa_handler = fn, .sa_flags = flags };

	need(sigaction(SIGALRM, &a, NULL) == 0, "sigaction");
}

static void in(int us)
{
	struct itimerval t = { .it_value.tv_usec = us };

	need(setitimer(ITIMER_REAL, &t, NULL) == 0, "setitimer");
}

static long switches(void)
{
	struct rusage u;

	getrusage(RUSAGE_THREAD, &u);
	return u.ru_nvcsw;
}

/* Waits sleep through, and everything still works. */
static void as_ever(void)
{
	struct timeval t = { 0, 200000 }, none = { 0, 0 };
	struct pollfd p = { .fd = c, .events = POLLIN };
	struct epoll_event ev;
	long before = switches();
	char b[8];

	R(setsockopt(c, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t));
	TIMED(190, 5000, recv(c, b, sizeof b, 0));
	TIMED(190, 5000, poll(&p, 1, 200));
	TIMED(190, 5000, epoll_wait(ep, &ev, 1, 200));
	R(switches() - before < 100);
	R(setsockopt(c, SOL_SOCKET, SO_RCVTIMEO, &none, sizeof none));
	R(send(s, "abc", 3, 0));
	R(recv(c, b, 3, MSG_WAITALL));
	int one = dial(&l_at), other = accept(l, NULL, NULL), again = dup(0);

	R(other >= 0);
	R(again < 32); /* no descriptor was lost */
	close(one), close(other), close(again);
}

static void jumps(bool own_stack)
{
	static char room[64 << 10];
	stack_t st = { .ss_sp = room, .ss_size = sizeof room };
	volatile int jumped = 0;

	need(sigaltstack(&st, NULL) == 0, "sigaltstack");
	on_alarm(jump, own_stack ? SA_ONSTACK : 0);
	for (volatile int i = 0; i < JUMPS; i++) {
		if (sigsetjmp(out, 1) == 0) {
			in(20 + i % 11 * 5);
			for (;;)
				wait_in(i % CALLS);
		}
		jumped++;
	}
	R(jumped == JUMPS);
}

/* As other functions of the same kind do it, and without the mask. */
static jmp_buf plain;
static volatile sig_atomic_t plain_calls;

static void plain_jump(int sig)
{
	(void)sig;
	if (++plain_calls % 2)
		_longjmp(plain, 1);
	longjmp(plain, 1);
}

static void plain_jumps(void)
{
	volatile int jumped = 0;

	on_alarm(plain_jump, SA_NODEFER);
	for (volatile int i = 0; i < 200; i++) {
		if (_setjmp(plain) == 0) {
			in(50);
			for (;;)
				wait_in(i % CALLS);
		}
		jumped++;
	}
	R(jumped);
}

static _Atomic bool waiting;
static _Atomic int cleaned;

static void clean(void *arg)
{
	(void)arg;
	cleaned++;
}

static void *waits(void *arg)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGALRM);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	pthread_cleanup_push(clean, NULL);
	waiting = true;
	for (;;)
		wait_in(*(enum call *)arg);
	pthread_cleanup_pop(0);
	return NULL;
}

static void leave(int sig)
{
	(void)sig;
	pthread_exit(PTHREAD_CANCELED);
}

static void threads(bool cancel, int rounds)
{
	struct sigaction a = { .sa_handler = leave };
	int ended = 0;

	need(sigaction(SIGUSR1, &a, NULL) == 0, "sigaction");
	cleaned = 0;
	for (int i = 0; i < rounds; i++) {
		enum call what = i % CALLS;
		pthread_t t;
		void *rc;

		waiting = false;
		need(pthread_create(&t, NULL, waits, &what) == 0, "pthread_create");
		while (!waiting)
			sched_yield();
		if (i % 3)
			usleep(i % 3 * 30);
		need((cancel ? pthread_cancel(t) : pthread_kill(t, SIGUSR1)) == 0, "its end");
		need(pthread_join(t, &rc) == 0, "pthread_join");
		ended += rc == PTHREAD_CANCELED;
	}
	R(ended);
	R(cleaned);
}

/* One that never waits is cancelled all the same. */
static void *busy(void *arg)
{
	int *at = arg;
	char b;

	waiting = true;
	while (send(at[0], "x", 1, 0) == 1 && recv(at[1], &b, 1, 0) == 1)
		;
	return NULL;
}

static void busy_one(void)
{
	int at[2];
	pthread_t t;
	void *rc;

	pair(AF_INET, &at[0], &at[1]);
	waiting = false;
	need(pthread_create(&t, NULL, busy, at) == 0, "pthread_create");
	while (!waiting)
		sched_yield();
	R(pthread_cancel(t));
	R(pthread_join(t, &rc));
	R(rc == PTHREAD_CANCELED);
	R(send(at[1], "y", 1, 0));
	close(at[0]), close(at[1]);
}

static void prepare(void)
{
	struct sockaddr_storage at = loopback(AF_INET, 0);
	struct epoll_event ev = { .events = EPOLLIN };

	pair(AF_INET, &c, &s);
	pair(AF_INET, &full, &peer);
	l = listener(AF_INET, &l_at);
	d = socket(AF_INET, SOCK_DGRAM, 0);
	need(bind(d, SA(at), addr_len(&at)) == 0, "bind");
	ep = epoll_create1(0);
	need(epoll_ctl(ep, EPOLL_CTL_ADD, c, &ev) == 0, "epoll_ctl");
	while (send(full, big, sizeof big, MSG_DONTWAIT) > 0)
		;
	nap(20);
	while (send(full, big, sizeof big, MSG_DONTWAIT) > 0)
		;
}

int main(void)
{
	prepare();
	SECTION("siglongjmp");
	jumps(false);
	as_ever();
	SECTION("siglongjmp from a handler's own stack");
	jumps(true);
	as_ever();
	SECTION("longjmp, _longjmp");
	plain_jumps();
	as_ever();
	SECTION("cancelled");
	threads(true, 1200);
	as_ever();
	SECTION("cancelled without ever waiting");
	busy_one();
	SECTION("pthread_exit in a handler");
	threads(false, 200);
	as_ever();
	return 0;
}
