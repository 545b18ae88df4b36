/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Threads that are cancelled in a call, or on their way into it: the socket is
 * as it was, and the others can use it.
 *
 * conf: not sanitized (AddressSanitizer takes the stack of a cancelled thread for
 * still in use)
 */
#include <pthread.h>
#include <sys/epoll.h>

#include "conf.h"

#define TIMES 20

static int at, epoll;

static void *accepts(void *arg)
{
	for (;;)
		close(accept(at, NULL, NULL));
	return arg;
}

static void *receives(void *arg)
{
	char b[16];

	while (recv(at, b, sizeof b, 0) > 0)
		;
	return arg;
}

static void *polls(void *arg)
{
	struct pollfd p = { .fd = at, .events = POLLIN };

	while (poll(&p, 1, -1) > 0)
		;
	return arg;
}

static void *waits(void *arg)
{
	struct epoll_event ev;

	while (epoll_wait(epoll, &ev, 1, -1) > 0)
		;
	return arg;
}

static void cancelled(void *(*fn)(void *), int ms)
{
	pthread_t t;
	void *result;

	need(pthread_create(&t, NULL, fn, NULL) == 0, "pthread_create");
	if (ms)
		nap(ms);
	R(pthread_cancel(t));
	need(pthread_join(t, &result) == 0, "pthread_join");
	show("%s", result == PTHREAD_CANCELED ? "cancelled" : "it ended");
}

static void in_accept(void)
{
	struct sockaddr_storage to;
	int c, s;

	for (int i = 0; i < TIMES; i++) {
		at = listener(AF_INET, &to);
		cancelled(accepts, i % 4 ? 0 : 20);
		c = FD(socket(AF_INET, SOCK_STREAM, 0));
		R(connect(c, SA(to), addr_len(&to)));
		s = FD(accept(at, NULL, NULL));
		R(close(s));
		R(close(c));
		R(close(at));
	}
}

static void in_the_middle(void *(*fn)(void *))
{
	struct epoll_event ev = { .events = EPOLLIN };
	char b[8];
	int c;

	for (int i = 0; i < TIMES; i++) {
		pair(AF_INET, &c, &at);
		epoll = epoll_create1(0);
		need(epoll >= 0 && epoll_ctl(epoll, EPOLL_CTL_ADD, at, &ev) == 0, "epoll");
		cancelled(fn, i % 4 ? 0 : 20);
		R(send(c, "hello", 5, 0));
		R(epoll_wait(epoll, &ev, 1, 10000));
		R(recv(at, b, sizeof b, 0));
		R(send(at, "well", 4, 0));
		R(recv(c, b, sizeof b, 0));
		R(close(at));
		R(recv(c, b, sizeof b, 0));
		R(close(c));
		close(epoll);
	}
}

int main(void)
{
	SECTION("accept");
	in_accept();
	SECTION("recv");
	in_the_middle(receives);
	SECTION("poll");
	in_the_middle(polls);
	SECTION("epoll_wait");
	in_the_middle(waits);
	return 0;
}
