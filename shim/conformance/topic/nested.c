/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Epoll instances within epoll instances: the outer one, and poll and select
 * of either, say that the inner one is readable exactly while it has something
 * to report, also to who sleeps.
 *
 * conf: threads
 */
#include "conf.h"

#include <pthread.h>
#include <sys/epoll.h>
#include <sys/select.h>

static int later; /* the socket that is written to when somebody sleeps */

static void watch(int ep, int fd, uint32_t events, uint32_t data)
{
	struct epoll_event e = { .events = events, .data.u32 = data };

	need(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e) == 0, "epoll_ctl");
}

/* What an instance reports, and who. */
static void reports(const char *name, int ep, int timeout)
{
	struct epoll_event e[4];
	int n = epoll_wait(ep, e, 4, timeout);

	show("%s: %d", name, n);
	for (int i = 0; i < n; i++)
		show(" %u:%#x", e[i].data.u32, e[i].events);
	show("\n");
}

static void *write_later(void *arg)
{
	(void)arg;
	nap(60);
	write_all(later, "later", 5);
	return NULL;
}

static pthread_t soon(int fd)
{
	pthread_t t;

	later = fd;
	need(pthread_create(&t, NULL, write_later, NULL) == 0, "pthread_create");
	return t;
}

static void empty(int fd)
{
	char b[64];

	while (recv(fd, b, sizeof b, MSG_DONTWAIT) > 0)
		;
}

static bool selected(int fd)
{
	struct timeval none = { 0 };
	fd_set r;

	FD_ZERO(&r);
	FD_SET(fd, &r);
	return select(fd + 1, &r, NULL, NULL, &none) == 1;
}

static void asked(void)
{
	int inner = epoll_create1(0), outer = epoll_create1(0), c, s;

	pair(AF_INET, &c, &s);
	watch(outer, inner, EPOLLIN, 7);
	watch(inner, s, EPOLLIN, 1);
	reports("nothing", outer, 0);
	READY(outer);
	write_all(c, "x", 1);
	await_bytes(s, 1);
	reports("outer", outer, 0);
	reports("again", outer, 0);
	READY(inner);
	READY(outer);
	R(selected(outer));
	reports("inner", inner, 0);
	reports("outer still", outer, 0);
	empty(s);
	reports("outer, when read", outer, 0);
	READY(inner);
	READY(outer);
	R(selected(outer));
	R(epoll_ctl(outer, EPOLL_CTL_DEL, inner, NULL));
	write_all(c, "x", 1);
	await_bytes(s, 1);
	reports("taken out", outer, 0);
	close(c), close(s), close(inner), close(outer);
}

static void slept(void)
{
	int inner = epoll_create1(0), outer = epoll_create1(0), c, s;
	pthread_t t;

	pair(AF_INET, &c, &s);
	watch(inner, s, EPOLLIN, 1);
	watch(outer, inner, EPOLLIN, 7);
	for (int i = 0; i < 3; i++) {
		t = soon(c);
		reports("outer", outer, 5000);
		reports("inner", inner, 5000);
		pthread_join(t, NULL);
		empty(s);
		reports("read", outer, 20);
	}
	t = soon(c);
	AWAIT(outer, POLLIN);
	pthread_join(t, NULL);
	empty(s);
	READY(outer);
	close(c), close(s), close(inner), close(outer);
}

/* The inner instance gets its first socket while somebody sleeps in the outer. */
struct addition {
	int ep, fd;
};

static void *add_later(void *arg)
{
	struct addition *a = arg;

	nap(60);
	watch(a->ep, a->fd, EPOLLIN, 1);
	nap(60);
	write_all(later, "x", 1);
	return NULL;
}

static void added(void)
{
	int inner = epoll_create1(0), outer = epoll_create1(0), c, s;
	struct addition a;
	pthread_t t;

	pair(AF_INET, &c, &s);
	watch(outer, inner, EPOLLIN, 7);
	a = (struct addition){ inner, s };
	later = c;
	need(pthread_create(&t, NULL, add_later, &a) == 0, "pthread_create");
	reports("outer", outer, 5000);
	pthread_join(t, NULL);
	reports("inner", inner, 0);
	close(c), close(s), close(inner), close(outer);
}

static void edges(void)
{
	int inner = epoll_create1(0), outer = epoll_create1(0), c, s;
	struct epoll_event e = { .events = EPOLLIN | EPOLLONESHOT, .data.u32 = 9 };

	pair(AF_INET, &c, &s);
	watch(inner, s, EPOLLIN, 1);
	watch(outer, inner, EPOLLIN | EPOLLET, 7);
	write_all(c, "x", 1);
	await_bytes(s, 1);
	reports("edge", outer, 0);
	reports("no edge", outer, 0);
	empty(s);
	reports("read", outer, 0);
	write_all(c, "x", 1);
	await_bytes(s, 1);
	reports("next edge", outer, 0);
	R(epoll_ctl(outer, EPOLL_CTL_MOD, inner, &e));
	reports("once", outer, 0);
	reports("no more", outer, 0);
	close(c), close(s), close(inner), close(outer);
}

/* Three deep, beside a socket and a pipe; then the inner one is closed. */
static void deep(void)
{
	int a = epoll_create1(0), b = epoll_create1(0), d = epoll_create1(0);
	int c, s, c2, s2, p[2];
	pthread_t t;

	pair(AF_INET, &c, &s);
	pair(AF_INET, &c2, &s2);
	need(pipe(p) == 0, "pipe");
	watch(a, s, EPOLLIN, 1);
	watch(a, p[0], EPOLLIN, 2);
	watch(b, a, EPOLLIN, 3);
	watch(d, b, EPOLLIN, 4);
	watch(d, s2, EPOLLIN, 5);
	reports("nothing", d, 0);
	t = soon(c);
	reports("the deepest", d, 5000);
	pthread_join(t, NULL);
	empty(s);
	reports("read", d, 0);
	write_all(p[1], "x", 1);
	reports("its pipe", d, 0);
	need(read(p[0], &(char){ 0 }, 1) == 1, "read");
	write_all(c2, "x", 1);
	await_bytes(s2, 1);
	reports("its own", d, 0);
	empty(s2);
	write_all(c, "x", 1);
	await_bytes(s, 1);
	reports("before the close", d, 0);
	close(a);
	reports("closed", d, 0);
	reports("closed", b, 0);
	close(b), close(d);
	close(c), close(s), close(c2), close(s2), close(p[0]), close(p[1]);
}

/* Another thread takes what comes, from the inner instance itself. */
static void *takes(void *arg)
{
	struct epoll_event e;
	char b[8];
	long got = 0;

	while (epoll_wait(*(int *)arg, &e, 1, 5000) == 1) {
		ssize_t n = recv(e.data.fd, b, sizeof b, MSG_DONTWAIT);

		if (n == 0)
			break;
		got += n > 0 ? n : 0;
	}
	return (void *)got;
}

static void shared(void)
{
	int inner = epoll_create1(0), outer = epoll_create1(0), c, s;
	struct epoll_event e = { .events = EPOLLIN };
	void *got = NULL;
	pthread_t t;

	pair(AF_INET, &c, &s);
	e.data.fd = s;
	need(epoll_ctl(inner, EPOLL_CTL_ADD, s, &e) == 0, "epoll_ctl");
	watch(outer, inner, EPOLLIN, 7);
	need(pthread_create(&t, NULL, takes, &inner) == 0, "pthread_create");
	for (int i = 0; i < 50; i++) {
		write_all(c, "x", 1);
		epoll_wait(outer, &e, 1, 2);
	}
	shutdown(c, SHUT_WR);
	reports("the end", outer, 5000);
	pthread_join(t, &got);
	R((long)got);
	close(c), close(s), close(inner), close(outer);
}

int main(void)
{
	SECTION("asked");
	asked();
	SECTION("slept");
	slept();
	SECTION("added");
	added();
	SECTION("edges");
	edges();
	SECTION("deep");
	deep();
	SECTION("shared with a thread");
	shared();
	return 0;
}
