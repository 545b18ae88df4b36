/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A listener in an epoll instance that nobody waits on, as Apache's prefork
 * children have it: connections are still found by accept and poll.
 */
#include <sys/epoll.h>

#include "conf.h"

#define TIMES 4

static int registered(int family, struct sockaddr_storage *at)
{
	int l = listener(family, at), ep = epoll_create1(0);
	struct epoll_event ev = { .events = EPOLLIN };

	need(ep >= 0 && epoll_ctl(ep, EPOLL_CTL_ADD, l, &ev) == 0, "epoll_ctl");
	return l;
}

/* The child connects when the parent has had the time to go to sleep. */
static pid_t connect_later(const struct sockaddr_storage *at)
{
	pid_t pid = fork();

	if (pid == 0) {
		nap(50);
		close(dial(at));
		_exit(0);
	}
	return pid;
}

static void blocking(void)
{
	struct sockaddr_storage at;
	int l = registered(AF_INET, &at), s;

	for (int i = 0; i < TIMES; i++) {
		pid_t pid = connect_later(&at);

		s = FD(accept(l, NULL, NULL));
		R(close(s));
		need(waitpid(pid, NULL, 0) == pid, "waitpid");
	}
	close(l);
}

static void polled(void)
{
	struct sockaddr_storage at;
	int l = registered(AF_INET, &at), s;

	for (int i = 0; i < TIMES; i++) {
		pid_t pid = connect_later(&at);

		AWAIT(l, POLLIN);
		s = FD(accept(l, NULL, NULL));
		R(close(s));
		need(waitpid(pid, NULL, 0) == pid, "waitpid");
	}
	close(l);
}

/* A loop that only ever asks. */
static void asked(void)
{
	struct sockaddr_storage at;
	int l = registered(AF_INET, &at), s;

	R(fcntl(l, F_SETFL, O_NONBLOCK));
	for (int i = 0; i < TIMES; i++) {
		int c = dial(&at);

		for (int tries = 0; (s = accept(l, NULL, NULL)) < 0 && errno == EAGAIN && tries < 100; tries++)
			nap(50);
		R(close(s));
		close(c);
	}
	close(l);
}

/* Connections that poll has seen are there for an instance that comes later,
 * without a moment's absence; so are those after them. */
static void overtaken(void)
{
	struct sockaddr_storage at;
	int l = listener(AF_INET, &at), ep = epoll_create1(0), c[3], s, missing = 0;
	struct epoll_event ev = { .events = EPOLLIN };

	for (int i = 0; i < 2; i++) {
		c[i] = dial(&at);
		AWAIT(l, POLLIN);
	}
	need(epoll_ctl(ep, EPOLL_CTL_ADD, l, &ev) == 0, "epoll_ctl");
	for (int i = 0; i < 20; i++)
		missing += epoll_wait(ep, &ev, 1, 0) != 1;
	R(missing);
	for (int i = 0; i < 2; i++) {
		R(epoll_wait(ep, &ev, 1, 5000));
		s = FD(accept(l, NULL, NULL));
		close(s), close(c[i]);
	}
	R(epoll_wait(ep, &ev, 1, 20));
	c[2] = dial(&at);
	R(epoll_wait(ep, &ev, 1, 5000));
	s = FD(accept(l, NULL, NULL));
	close(s), close(c[2]), close(ep), close(l);
}

int main(void)
{
	SECTION("accept");
	blocking();
	SECTION("poll");
	polled();
	SECTION("non-blocking accept");
	asked();
	SECTION("an instance that comes later");
	overtaken();
	return 0;
}
