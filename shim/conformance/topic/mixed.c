/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Offloaded sockets and the kernel's descriptors in one wait: pipes, eventfd,
 * timerfd, signalfd, Unix sockets and epoll instances; in epoll, poll and
 * select; more descriptors than select can name.
 */
#include "conf.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>

enum { SOCK, PIPE, EVENT, TIMER, SIGNAL, UNIX, KINDS };

static struct set {
	int rd[KINDS], client, pipe, unixend;
} w;

static void open_all(void)
{
	sigset_t usr1;
	int p[2];

	sigemptyset(&usr1);
	sigaddset(&usr1, SIGUSR1);
	sigprocmask(SIG_BLOCK, &usr1, NULL);
	pair(AF_INET, &w.client, &w.rd[SOCK]);
	need(pipe(p) == 0, "pipe");
	w.rd[PIPE] = p[0], w.pipe = p[1];
	w.rd[EVENT] = eventfd(0, 0);
	w.rd[TIMER] = timerfd_create(CLOCK_MONOTONIC, 0);
	w.rd[SIGNAL] = signalfd(-1, &usr1, 0);
	need(socketpair(AF_UNIX, SOCK_STREAM, 0, p) == 0, "socketpair");
	w.rd[UNIX] = p[0], w.unixend = p[1];
}

static void close_all(void)
{
	struct timespec none = { 0 };
	sigset_t usr1;

	sigemptyset(&usr1);
	sigaddset(&usr1, SIGUSR1);
	sigtimedwait(&usr1, NULL, &none);
	for (int i = 0; i < KINDS; i++)
		close(w.rd[i]);
	close(w.client), close(w.pipe), close(w.unixend);
}

static void make_ready(int kind)
{
	struct itimerspec soon = { .it_value.tv_nsec = 1 };
	uint64_t one = 1;

	switch (kind) {
	case SOCK: write_all(w.client, "x", 1); break;
	case PIPE: write_all(w.pipe, "x", 1); break;
	case EVENT: write_all(w.rd[EVENT], &one, 8); break;
	case TIMER: timerfd_settime(w.rd[TIMER], 0, &soon, NULL); break;
	case SIGNAL: raise(SIGUSR1); break;
	case UNIX: write_all(w.unixend, "x", 1); break;
	}
	await_events(w.rd[kind], POLLIN);
}

static void take(int kind)
{
	char b[128];

	need(read(w.rd[kind], b, kind == SIGNAL ? 128 : 8) > 0, "read");
}

/* One check: which of the instance's descriptors are ready, looked at often
 * enough for both kinds to have their turn. */
static void ready_in(int ep)
{
	struct epoll_event ev[KINDS + 1];
	unsigned seen = 0;

	for (int i = 0; i < 40; i++) {
		int n = epoll_wait(ep, ev, KINDS + 1, 0);

		for (int k = 0; k < n; k++)
			seen |= 1u << ev[k].data.u32;
	}
	R(seen);
}

static void in_epoll(void)
{
	int ep = epoll_create1(0);

	open_all();
	for (int i = 0; i < KINDS; i++) {
		struct epoll_event ev = { .events = EPOLLIN, .data.u32 = i };

		R(epoll_ctl(ep, EPOLL_CTL_ADD, w.rd[i], &ev));
	}
	ready_in(ep);
	/* Each alone wakes a wait without limit; then all, then none. */
	for (int i = 0; i < KINDS; i++) {
		struct epoll_event ev;

		make_ready(i);
		R(epoll_wait(ep, &ev, 1, -1));
		show("data %u", ev.data.u32);
		take(i);
	}
	ready_in(ep);
	for (int i = 0; i < KINDS; i++)
		make_ready(i);
	ready_in(ep);
	for (int i = 0; i < KINDS; i++) {
		take(i);
		ready_in(ep);
	}
	close_all();
	close(ep);
}

static void in_poll(void)
{
	struct pollfd p[KINDS + 2];

	open_all();
	for (int i = 0; i < KINDS; i++)
		p[i] = (struct pollfd){ w.rd[i], POLLIN, 0 };
	p[KINDS] = (struct pollfd){ -1, POLLIN, 77 };
	p[KINDS + 1] = (struct pollfd){ w.client, POLLOUT, 0 };
	R(poll(p, KINDS, 0));
	TIMED(45, 5000, poll(p, KINDS + 1, 50));
	show("revents of -1 are %d", p[KINDS].revents);
	for (int i = 0; i < KINDS; i++) {
		make_ready(i);
		R(poll(p, KINDS, -1));
		for (int k = 0; k < KINDS; k++)
			show("%d: %x", k, p[k].revents);
	}
	R(poll(p, KINDS + 2, -1));
	show_events("client", p[KINDS + 1].revents);
	R(ppoll(p, KINDS, NULL, NULL));
	p[KINDS].fd = 998;
	R(poll(p, KINDS + 1, 0));
	show_events("closed", p[KINDS].revents);
	close_all();
}

static void in_select(void)
{
	struct timeval t = { .tv_usec = 50000 };
	struct timespec ts = { .tv_nsec = 50000000 };
	fd_set rd, wr;
	int top = 0;

	open_all();
	for (int i = 0; i < KINDS; i++)
		top = w.rd[i] >= top ? w.rd[i] + 1 : top;
	top = w.client >= top ? w.client + 1 : top;
#define FILL() do { FD_ZERO(&rd); FD_ZERO(&wr); for (int i = 0; i < KINDS; i++) FD_SET(w.rd[i], &rd); } while (0)
	FILL();
	TIMED(45, 5000, select(top, &rd, NULL, NULL, &t));
	FILL();
	TIMED(45, 5000, pselect(top, &rd, &wr, NULL, &ts, NULL));
	for (int i = 0; i < KINDS; i++) {
		make_ready(i);
		FILL();
		R(select(top, &rd, &wr, NULL, NULL));
		for (int k = 0; k < KINDS; k++)
			show("%d: %d", k, !!FD_ISSET(w.rd[k], &rd));
	}
	FILL();
	FD_SET(w.client, &wr);
	R(select(top, &rd, &wr, NULL, NULL));
	show("client %d", !!FD_ISSET(w.client, &wr));
	FD_ZERO(&rd);
	FD_SET(60, &rd);
	FD_SET(w.rd[SOCK], &rd);
	t = (struct timeval){ 0 };
	R(select(61, &rd, NULL, NULL, &t));
	R(select(-1, NULL, NULL, NULL, &t));
	close_all();
}

/* All are ready all the time, and there is not always room for all: each has
 * its turn. One check for each room: who was reported. */
static void none_starves(void)
{
	enum { PAIRS = 4, EVENTFDS = 2, ALL = PAIRS + EVENTFDS };
	int ep = epoll_create1(0), c[PAIRS], s[PAIRS], e[EVENTFDS];

	for (int i = 0; i < ALL; i++) {
		struct epoll_event ev = { .events = i < PAIRS ? EPOLLOUT : EPOLLIN, .data.u32 = i };

		if (i < PAIRS)
			pair(AF_INET, &c[i], &s[i]);
		else
			e[i - PAIRS] = eventfd(1, 0);
		R(epoll_ctl(ep, EPOLL_CTL_ADD, i < PAIRS ? s[i] : e[i - PAIRS], &ev));
	}
	for (int max = 1; max <= ALL + 1; max++) {
		struct epoll_event ev[ALL + 1];
		unsigned seen = 0;
		bool twice = false;

		for (int turn = 0; turn < 100; turn++) {
			int n = epoll_wait(ep, ev, max, -1);
			unsigned now = 0;

			for (int k = 0; k < n; k++) {
				twice |= now >> ev[k].data.u32 & 1;
				now |= 1u << ev[k].data.u32;
			}
			seen |= now;
		}
		R(seen);
		R(twice);
	}
	for (int i = 0; i < PAIRS; i++)
		close(c[i]), close(s[i]);
	for (int i = 0; i < EVENTFDS; i++)
		close(e[i]);
	close(ep);
}

/* An epoll instance is a descriptor like another. */
static void instance_polled(void)
{
	int ep = epoll_create1(0), c, s;
	struct epoll_event ev = { .events = EPOLLIN };

	pair(AF_INET, &c, &s);
	R(epoll_ctl(ep, EPOLL_CTL_ADD, s, &ev));
	READY(ep);
	write_all(c, "x", 1);
	AWAIT(ep, POLLIN);
	READY(ep);
	R(read(s, &ev, 1));
	READY(ep);
	TIMED(45, 5000, poll(&(struct pollfd){ ep, POLLIN, 0 }, 1, 50));
	close(c);
	AWAIT(ep, POLLIN);
	close(s);
	READY(ep);
	close(ep);
}

static void many(void)
{
	enum { N = 1500 };
	static struct pollfd p[4097];
	struct rlimit lim = { 4096, 4096 };
	int c, s;

	getrlimit(RLIMIT_NOFILE, &lim);
	lim.rlim_cur = lim.rlim_max < 4096 ? lim.rlim_max : 4096;
	need(setrlimit(RLIMIT_NOFILE, &lim) == 0, "setrlimit");
	pair(AF_INET, &c, &s);
	for (int i = 0; i < N; i++) {
		int fd = dup(i % 2 ? s : c);

		need(fd >= 0, "dup");
		p[i] = (struct pollfd){ fd, i % 2 ? POLLIN : POLLOUT, 0 };
	}
	R(poll(p, N, 0));
	write_all(c, "x", 1);
	await_bytes(s, 1);
	R(poll(p, N, -1));
	show_events("one beyond what select can name", p[N - 1].revents);
	R(poll(p, lim.rlim_cur + 1, 0));
	for (int i = 0; i < N; i++)
		close(p[i].fd);
	R(send(c, "y", 1, 0));
	close(c), close(s);
}

int main(void)
{
	SECTION("epoll");
	in_epoll();
	SECTION("none starves");
	none_starves();
	SECTION("poll");
	in_poll();
	SECTION("select");
	in_select();
	SECTION("instance polled");
	instance_polled();
	SECTION("many");
	many();
	return 0;
}
