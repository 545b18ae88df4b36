/* SPDX-License-Identifier: Apache-2.0 */

/*
 * epoll: what epoll_ctl takes and refuses; level, edge and one-shot; what ends
 * of a connection look like; one socket in several instances, under several
 * numbers; timeouts.
 */
#include "conf.h"

#include <sys/epoll.h>
#include <time.h>

static void show_epoll(uint32_t e)
{
	show("events%s%s%s%s%s%s", e & EPOLLIN ? " in" : "", e & EPOLLOUT ? " out" : "", e & EPOLLPRI ? " pri" : "",
	     e & EPOLLERR ? " err" : "", e & EPOLLHUP ? " hup" : "", e & EPOLLRDHUP ? " rdhup" : "");
}

static int by_data(const void *a, const void *b)
{
	const struct epoll_event *x = a, *y = b;

	return x->data.u64 < y->data.u64 ? -1 : x->data.u64 > y->data.u64;
}

/* One check: what is ready now. */
static void now(int ep)
{
	struct epoll_event ev[16];
	int n = R(epoll_wait(ep, ev, 16, 0));

	qsort(ev, n > 0 ? n : 0, sizeof ev[0], by_data);
	for (int i = 0; i < n; i++) {
		show("data %llu", (unsigned long long)ev[i].data.u64);
		show_epoll(ev[i].events);
	}
}

static int ctl(int ep, int op, int fd, uint32_t events, uint64_t data)
{
	struct epoll_event ev = { .events = events, .data.u64 = data };

	return epoll_ctl(ep, op, fd, &ev);
}

static void controls(void)
{
	int ep = FD(epoll_create1(0)), other = FD(epoll_create(7)), c, s, file = open("/dev/null", O_RDONLY);
	struct epoll_event ev = { .events = EPOLLIN };

	FD(epoll_create(0));
	FD(epoll_create1(1));
	pair(AF_INET, &c, &s);
	R(ctl(ep, EPOLL_CTL_MOD, s, EPOLLIN, 1));
	R(ctl(ep, EPOLL_CTL_DEL, s, 0, 0));
	R(ctl(ep, EPOLL_CTL_ADD, s, EPOLLIN, 1));
	R(ctl(ep, EPOLL_CTL_ADD, s, EPOLLIN, 1));
	R(ctl(ep, 17, s, EPOLLIN, 1));
	R(ctl(ep, EPOLL_CTL_ADD, ep, EPOLLIN, 1));
	R(ctl(ep, EPOLL_CTL_ADD, 999, EPOLLIN, 1));
	R(ctl(999, EPOLL_CTL_ADD, s, EPOLLIN, 1));
	R(ctl(c, EPOLL_CTL_ADD, s, EPOLLIN, 1));
	R(ctl(ep, EPOLL_CTL_ADD, file, EPOLLIN, 1));
	R(epoll_ctl(ep, EPOLL_CTL_ADD, c, NULL));
	R(epoll_ctl(ep, EPOLL_CTL_DEL, s, NULL));
	R(epoll_wait(ep, &ev, 0, 0));
	{ volatile int below = -1; R(epoll_wait(ep, &ev, below, 0)); }
	R(epoll_wait(c, &ev, 1, 0));
	R(epoll_wait(999, &ev, 1, 0));
	/* EXCLUSIVE: at ADD only, and with few other flags. */
	R(ctl(ep, EPOLL_CTL_ADD, s, EPOLLIN | EPOLLEXCLUSIVE | EPOLLONESHOT, 1));
	R(ctl(ep, EPOLL_CTL_ADD, s, EPOLLIN | EPOLLEXCLUSIVE | EPOLLRDHUP, 1));
	R(ctl(ep, EPOLL_CTL_ADD, s, EPOLLIN | EPOLLEXCLUSIVE | EPOLLET, 1));
	R(ctl(ep, EPOLL_CTL_MOD, s, EPOLLIN, 1));
	R(ctl(ep, EPOLL_CTL_MOD, s, EPOLLIN | EPOLLEXCLUSIVE, 1));
	R(ctl(ep, EPOLL_CTL_DEL, s, 0, 0));
	R(ctl(ep, EPOLL_CTL_ADD, other, EPOLLIN | EPOLLEXCLUSIVE, 1));
	close(c), close(s), close(ep), close(other), close(file);
}

static void level(void)
{
	int ep = epoll_create1(0), c, s;
	char b[8];

	pair(AF_INET, &c, &s);
	R(ctl(ep, EPOLL_CTL_ADD, s, EPOLLIN, 5));
	now(ep);
	write_all(c, "abcd", 4);
	await_bytes(s, 4);
	now(ep);
	now(ep);
	R(read(s, b, 2));
	now(ep);
	R(read(s, b, 2));
	now(ep);
	R(ctl(ep, EPOLL_CTL_MOD, s, EPOLLOUT, 6));
	now(ep);
	now(ep);
	R(ctl(ep, EPOLL_CTL_MOD, s, 0, 7));
	now(ep);
	close(c), close(s), close(ep);
}

static void edge(void)
{
	int ep = epoll_create1(0), c, s;
	char b[8];

	pair(AF_INET, &c, &s);
	R(ctl(ep, EPOLL_CTL_ADD, s, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, 1));
	now(ep);
	now(ep);
	write_all(c, "abcd", 4);
	await_bytes(s, 4);
	now(ep);
	now(ep);
	/* Half-read is no edge, more data is. */
	R(read(s, b, 2));
	now(ep);
	write_all(c, "ef", 2);
	await_bytes(s, 4);
	now(ep);
	now(ep);
	/* MOD looks anew. */
	R(ctl(ep, EPOLL_CTL_MOD, s, EPOLLIN | EPOLLET, 2));
	now(ep);
	now(ep);
	R(ctl(ep, EPOLL_CTL_MOD, s, EPOLLIN | EPOLLRDHUP | EPOLLET, 3));
	now(ep);
	R(shutdown(c, SHUT_WR));
	await_events(s, POLLRDHUP);
	now(ep);
	now(ep);
	close(c), close(s), close(ep);
}

static void oneshot(uint32_t more)
{
	int ep = epoll_create1(0), c, s;

	pair(AF_INET, &c, &s);
	R(ctl(ep, EPOLL_CTL_ADD, s, EPOLLIN | EPOLLONESHOT | more, 1));
	write_all(c, "a", 1);
	await_bytes(s, 1);
	now(ep);
	now(ep);
	write_all(c, "b", 1);
	await_bytes(s, 2);
	now(ep);
	R(ctl(ep, EPOLL_CTL_MOD, s, EPOLLIN | EPOLLONESHOT | more, 2));
	now(ep);
	now(ep);
	/* Fired, it does not even tell of the end. */
	close(c);
	await_events(s, POLLRDHUP);
	now(ep);
	R(ctl(ep, EPOLL_CTL_MOD, s, EPOLLRDHUP | EPOLLONESHOT | more, 3));
	now(ep);
	now(ep);
	close(s), close(ep);
}

static void ends(void)
{
	int ep = epoll_create1(0), c, s;
	struct linger l = { 1, 0 };

	pair(AF_INET, &c, &s);
	R(ctl(ep, EPOLL_CTL_ADD, s, EPOLLIN | EPOLLOUT | EPOLLRDHUP, 1));
	R(shutdown(c, SHUT_WR));
	await_events(s, POLLRDHUP);
	now(ep);
	R(shutdown(s, SHUT_WR));
	await_events(s, POLLHUP);
	now(ep);
	close(c), close(s);
	now(ep);

	pair(AF_INET, &c, &s);
	R(ctl(ep, EPOLL_CTL_ADD, s, 0, 2));
	setsockopt(c, SOL_SOCKET, SO_LINGER, &l, sizeof l);
	close(c);
	await_events(s, POLLERR);
	now(ep);
	R(ctl(ep, EPOLL_CTL_MOD, s, EPOLLIN | EPOLLOUT | EPOLLRDHUP, 2));
	now(ep);
	OPT(s, SOL_SOCKET, SO_ERROR);
	now(ep);
	close(s), close(ep);
}

/* Every change of state is an edge for all, whatever it is about. */
static void edges_of_state(void)
{
	struct sockaddr_storage at;
	struct epoll_event e = { .events = EPOLLIN | EPOLLET };
	int c, s, ep = epoll_create1(0), l = listener(AF_INET, &at);
	char buf[8];

	pair(AF_INET, &c, &s);
	R(epoll_ctl(ep, EPOLL_CTL_ADD, s, &e));
	now(ep);
	R(shutdown(c, SHUT_WR));
	await_events(s, POLLRDHUP);
	now(ep);
	R(read(s, buf, sizeof buf));
	now(ep);
	R(shutdown(s, SHUT_RD));
	now(ep);
	R(shutdown(s, SHUT_WR));
	now(ep);
	close(c), close(s);

	pair(AF_INET, &c, &s);
	e.events = EPOLLOUT | EPOLLET;
	R(epoll_ctl(ep, EPOLL_CTL_ADD, s, &e));
	now(ep);
	R(shutdown(c, SHUT_WR));
	await_events(s, POLLRDHUP);
	now(ep);
	R(shutdown(s, SHUT_RD));
	now(ep);
	now(ep);
	close(c), close(s);

	e.events = EPOLLIN | EPOLLET;
	R(epoll_ctl(ep, EPOLL_CTL_ADD, l, &e));
	c = dial(&at);
	await_events(l, POLLIN);
	now(ep);
	now(ep);
	R(shutdown(l, SHUT_WR));
	now(ep);
	close(c), close(l), close(ep);
}

/* Each end of a half is an edge for who waits for anything at all. */
static void end_edges(void)
{
	static const uint32_t wanted[] = { EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLLIN | EPOLLOUT, 0 };
	enum { N = sizeof wanted / sizeof *wanted };
	int ep[2][N], c, s;
	char b[8];

	pair(AF_INET, &c, &s);
	for (int i = 0; i < N; i++) {
		ep[0][i] = epoll_create1(0);
		ep[1][i] = epoll_create1(0);
		R(ctl(ep[0][i], EPOLL_CTL_ADD, s, wanted[i] | EPOLLET, i));
		R(ctl(ep[1][i], EPOLL_CTL_ADD, c, wanted[i] | EPOLLET, i));
		now(ep[0][i]);
		now(ep[1][i]);
	}
	R(shutdown(c, SHUT_WR));
	await_events(s, POLLRDHUP);
	for (int i = 0; i < N; i++) {
		now(ep[0][i]);
		now(ep[1][i]);
	}
	R(recv(s, b, sizeof b, 0));
	R(shutdown(s, SHUT_WR));
	await_events(c, POLLHUP);
	for (int i = 0; i < N; i++) {
		now(ep[0][i]);
		now(ep[1][i]);
	}
	R(shutdown(s, SHUT_RD)); /* it fails, and is one all the same */
	for (int i = 0; i < N; i++) {
		now(ep[0][i]);
		now(ep[1][i]);
		close(ep[0][i]);
		close(ep[1][i]);
	}
	close(c), close(s);
}

static void undecided(void)
{
	struct sockaddr_storage at;
	int ep = epoll_create1(0), l, c = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), s;

	/* Registered before there is a connection. */
	R(ctl(ep, EPOLL_CTL_ADD, c, EPOLLIN | EPOLLOUT | EPOLLET, 1));
	now(ep);
	l = listener(AF_INET, &at);
	R(ctl(ep, EPOLL_CTL_ADD, l, EPOLLIN, 2));
	R(connect(c, SA(at), addr_len(&at)));
	await_events(c, POLLOUT);
	await_events(l, POLLIN);
	now(ep);
	s = FD(accept(l, NULL, NULL));
	now(ep);
	write_all(s, "x", 1);
	await_bytes(c, 1);
	now(ep);
	close(c), close(s), close(l);
	now(ep);
	close(ep);
}

/* A registration belongs to the open file: it lives as long as that does. */
static void copies(void)
{
	int a = epoll_create1(0), b = epoll_create1(0), c, s, d;

	pair(AF_INET, &c, &s);
	R(ctl(a, EPOLL_CTL_ADD, s, EPOLLIN, 1));
	R(ctl(b, EPOLL_CTL_ADD, s, EPOLLIN | EPOLLET, 2));
	d = dup(s);
	R(ctl(a, EPOLL_CTL_ADD, d, EPOLLIN | EPOLLOUT, 3));
	write_all(c, "x", 1);
	await_bytes(s, 1);
	now(a);
	now(b);
	now(b);
	close(s);
	now(a);
	R(ctl(a, EPOLL_CTL_DEL, s, 0, 0));
	now(a);
	close(d);
	now(a);
	now(b);
	close(c), close(a), close(b);
}

static void copied_instance(void)
{
	int ep = epoll_create1(0), c, s, copy;

	pair(AF_INET, &c, &s);
	R(ctl(ep, EPOLL_CTL_ADD, s, EPOLLIN, 1));
	copy = FD(dup(ep));
	write_all(c, "x", 1);
	await_bytes(s, 1);
	now(copy);
	close(ep);
	now(copy);
	R(ctl(copy, EPOLL_CTL_MOD, s, EPOLLOUT, 2));
	now(copy);
	close(c), close(s), close(copy);
}

static void few_at_a_time(void)
{
	int ep = epoll_create1(0), c[6], s[6], seen = 0;

	for (int i = 0; i < 6; i++) {
		pair(AF_INET, &c[i], &s[i]);
		ctl(ep, EPOLL_CTL_ADD, s[i], EPOLLIN, i);
		write_all(c[i], "x", 1);
		await_bytes(s[i], 1);
	}
	/* Level-triggered ones take turns. */
	for (int i = 0; i < 3; i++) {
		struct epoll_event ev[2];
		int n = R(epoll_wait(ep, ev, 2, 0));

		for (int k = 0; k < n; k++)
			seen |= 1 << ev[k].data.u64;
	}
	show("seen %x", seen);
	for (int i = 0; i < 6; i++)
		close(c[i]), close(s[i]);
	close(ep);
}

/* A connection that was waited for in another way before. */
static void late_instance(uint32_t events)
{
	struct sockaddr_storage at;
	struct epoll_event ev;
	int l = listener(AF_INET, &at), ep = epoll_create1(0), c = dial(&at), s;

	await_events(l, POLLIN);
	R(ctl(ep, EPOLL_CTL_ADD, l, events, 1));
	now(ep);
	TIMED(0, 5000, epoll_wait(ep, &ev, 1, 20)); /* which sleeps, if there are edges only */
	AWAIT(l, POLLIN);
	s = FD(accept(l, NULL, NULL));
	TIMED(15, 5000, epoll_wait(ep, &ev, 1, 20));
	close(c), close(s);
	c = dial(&at);
	R(epoll_wait(ep, &ev, 1, 5000));
	s = FD(accept(l, NULL, NULL));
	close(c), close(s), close(ep), close(l);
}

static void timeouts(void)
{
	int ep = epoll_create1(0), c, s;
	struct timespec t = { .tv_nsec = 50000000 }, zero = { 0 }, bad = { .tv_nsec = 1000000000 };
	struct epoll_event ev;
	sigset_t mask;

	sigemptyset(&mask);
	pair(AF_INET, &c, &s);
	ctl(ep, EPOLL_CTL_ADD, s, EPOLLIN, 1);
	TIMED(45, 5000, epoll_wait(ep, &ev, 1, 50));
	TIMED(45, 5000, epoll_pwait(ep, &ev, 1, 50, &mask));
	TIMED(45, 5000, epoll_pwait2(ep, &ev, 1, &t, NULL));
	TIMED(0, 5000, epoll_pwait2(ep, &ev, 1, &zero, &mask));
	R(epoll_pwait2(ep, &ev, 1, &bad, NULL));
	write_all(c, "x", 1);
	TIMED(0, 5000, epoll_wait(ep, &ev, 1, -1));
	TIMED(0, 5000, epoll_wait(ep, &ev, 1, 10000));
	TIMED(0, 5000, epoll_pwait2(ep, &ev, 1, NULL, NULL));
	close(c), close(s), close(ep);
}

int main(void)
{
	SECTION("controls");
	controls();
	SECTION("level");
	level();
	SECTION("edge");
	edge();
	SECTION("one-shot");
	oneshot(0);
	SECTION("one-shot edge");
	oneshot(EPOLLET);
	SECTION("ends");
	ends();
	SECTION("edges of state");
	edges_of_state();
	SECTION("edges of ends");
	end_edges();
	SECTION("undecided");
	undecided();
	SECTION("copies");
	copies();
	SECTION("copied instance");
	copied_instance();
	SECTION("few at a time");
	few_at_a_time();
	SECTION("a late instance");
	late_instance(EPOLLIN);
	SECTION("a late instance, edges");
	late_instance(EPOLLIN | EPOLLET);
	SECTION("timeouts");
	timeouts();
	return 0;
}
