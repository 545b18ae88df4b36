/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The open file description: what a process does to a socket that it shares
 * with another over fork holds for both. Flags, time limits, options, what is
 * shut down, how it ends, in which order bytes go out, and that both hear of
 * what comes.
 */
#include "conf.h"

#include <sys/epoll.h>

static int begun[2], ended[2]; /* pipes: the child is ready; it may go on */

static void say(int pipe) { need(write(pipe, "x", 1) == 1, "write to a pipe"); }

static void hear(int pipe)
{
	char b;
	ssize_t n;

	while ((n = read(pipe, &b, 1)) < 0 && errno == EINTR)
		;
	need(n == 1, "read from a pipe");
}

static void finish(pid_t pid)
{
	int status = -1;

	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	R(status);
}

/* In a child that then ends. */
static void elsewhere(void (*fn)(int), int s)
{
	pid_t pid = fork();

	need(pid >= 0, "fork");
	if (pid == 0) {
		fn(s);
		fflush(stdout);
		_exit(0);
	}
	finish(pid);
}

static void limit(int s, int name, int ms)
{
	struct timeval t = { ms / 1000, ms % 1000 * 1000 };

	need(setsockopt(s, SOL_SOCKET, name, &t, sizeof t) == 0, "setsockopt of a time limit");
}

static long limit_of(int s, int name)
{
	struct timeval t = { 9, 9 };
	socklen_t len = sizeof t;

	need(getsockopt(s, SOL_SOCKET, name, &t, &len) == 0, "getsockopt of a time limit");
	return t.tv_sec * 1000 + t.tv_usec / 1000;
}

static void no_wait(int s) { R(fcntl(s, F_SETFL, fcntl(s, F_GETFL) | O_NONBLOCK)); }
static void wait_again(int s) { R(fcntl(s, F_SETFL, fcntl(s, F_GETFL) & ~O_NONBLOCK)); }
static void by_ioctl(int s) { int on = 1; R(ioctl(s, FIONBIO, &on)); }
static void appends(int s) { R(fcntl(s, F_SETFL, fcntl(s, F_GETFL) | O_APPEND)); }

static void shows_flags(int s)
{
	R(!!(fcntl(s, F_GETFL) & O_NONBLOCK));
	R(!!(fcntl(s, F_GETFL) & O_APPEND));
}

static void limits(int s)
{
	limit(s, SO_RCVTIMEO, 100);
	limit(s, SO_SNDTIMEO, 300);
}

static void flags_of(int s)
{
	char b[8];

	elsewhere(no_wait, s);
	shows_flags(s);
	R(recv(s, b, 8, 0));
	elsewhere(shows_flags, s);
	elsewhere(wait_again, s);
	shows_flags(s);
	elsewhere(limits, s);
	R(limit_of(s, SO_RCVTIMEO));
	R(limit_of(s, SO_SNDTIMEO));
	TIMED(80, 9000, recv(s, b, 8, 0));
	elsewhere(by_ioctl, s);
	R(recv(s, b, 8, 0));
	elsewhere(appends, s);
	shows_flags(s);
}

static void flags(void)
{
	int c, s;

	pair(AF_INET, &c, &s);
	flags_of(s);
	flags_of(c);
	close(c), close(s);
	pair(AF_INET6, &c, &s);
	flags_of(s);
	close(c), close(s);
}

static void flags_of_others(void)
{
	struct sockaddr_storage at = loopback(AF_INET, 0);
	int l = listener(AF_INET, &at), d = socket(AF_INET, SOCK_DGRAM, 0);

	need(bind(d, SA(at), addr_len(&at)) == 0 || errno == EADDRINUSE, "bind");
	flags_of(d);
	elsewhere(no_wait, l);
	shows_flags(l);
	R(accept(l, NULL, NULL));
	elsewhere(wait_again, l);
	elsewhere(limits, l);
	TIMED(80, 9000, accept(l, NULL, NULL));
	close(l), close(d);
}

/* While both live, too. */
static void flags_of_the_living(void)
{
	char b[8];
	int c, s;
	pid_t pid;

	pair(AF_INET, &c, &s);
	pid = fork();
	if (pid == 0) {
		hear(ended[0]);
		shows_flags(s);
		R(recv(s, b, 8, 0));
		fflush(stdout);
		say(begun[1]);
		hear(ended[0]);
		R(limit_of(s, SO_RCVTIMEO));
		wait_again(s);
		fflush(stdout);
		say(begun[1]);
		hear(ended[0]);
		_exit(0);
	}
	no_wait(s);
	fflush(stdout);
	say(ended[1]);
	hear(begun[0]);
	R(recv(s, b, 8, 0));
	limit(s, SO_RCVTIMEO, 120);
	fflush(stdout);
	say(ended[1]);
	hear(begun[0]);
	TIMED(100, 9000, recv(s, b, 8, 0));
	say(ended[1]);
	finish(pid);
	close(c), close(s);
}

static void sets_options(int s)
{
	SETOPT(s, IPPROTO_TCP, TCP_NODELAY, 1);
	SETOPT(s, SOL_SOCKET, SO_KEEPALIVE, 1);
	SETOPT(s, IPPROTO_TCP, TCP_KEEPIDLE, 77);
	SETOPT(s, IPPROTO_TCP, TCP_KEEPINTVL, 7);
	SETOPT(s, IPPROTO_TCP, TCP_USER_TIMEOUT, 5000);
	SETOPT(s, IPPROTO_IP, IP_TOS, 0x10);
	SETOPT(s, SOL_SOCKET, SO_RCVLOWAT, 3);
}

static void shows_options(int s)
{
	OPT(s, IPPROTO_TCP, TCP_NODELAY);
	OPT(s, SOL_SOCKET, SO_KEEPALIVE);
	OPT(s, IPPROTO_TCP, TCP_KEEPIDLE);
	OPT(s, IPPROTO_TCP, TCP_KEEPINTVL);
	OPT(s, IPPROTO_TCP, TCP_KEEPCNT);
	OPT(s, IPPROTO_TCP, TCP_USER_TIMEOUT);
	OPT(s, IPPROTO_IP, IP_TOS);
	OPT(s, SOL_SOCKET, SO_RCVLOWAT);
	OPT(s, SOL_SOCKET, SO_ERROR);
	OPT(s, SOL_SOCKET, SO_TYPE);
}

static void options(void)
{
	int c, s;

	pair(AF_INET, &c, &s);
	SETOPT(s, IPPROTO_TCP, TCP_KEEPCNT, 3); /* before there is a child */
	elsewhere(sets_options, s);
	shows_options(s);
	elsewhere(shows_options, s);
	elsewhere(sets_options, c);
	shows_options(c);
	close(c), close(s);
}

static void shuts_sending(int s) { R(shutdown(s, SHUT_WR)); }
static void shuts_both(int s) { R(shutdown(s, SHUT_RDWR)); }

static void shut_in_child(void)
{
	char b[8];
	int c, s;

	catch_signals(SIGPIPE);
	pair(AF_INET, &c, &s);
	elsewhere(shuts_sending, s);
	R(send(s, "x", 1, 0));
	show_signal();
	R(send(s, "x", 1, MSG_NOSIGNAL));
	R(recv(c, b, 8, 0));
	write_all(c, "still", 5);
	R(recv(s, b, 8, 0));
	close(c), close(s);

	pair(AF_INET, &c, &s);
	elsewhere(shuts_both, s);
	R(recv(s, b, 8, 0));
	R(send(s, "x", 1, MSG_NOSIGNAL));
	READY(s);
	R(recv(c, b, 8, 0));
	close(c), close(s);
}

/* The parent shuts it, the child lives already. */
static void shut_in_parent(void)
{
	char b[8];
	int c, s;
	pid_t pid;

	pair(AF_INET, &c, &s);
	pid = fork();
	if (pid == 0) {
		hear(ended[0]);
		R(send(s, "x", 1, MSG_NOSIGNAL));
		R(shutdown(s, SHUT_RD));
		R(recv(s, b, 8, 0));
		fflush(stdout);
		_exit(0);
	}
	R(shutdown(s, SHUT_WR));
	fflush(stdout);
	say(ended[1]);
	finish(pid);
	R(recv(c, b, 8, 0));
	R(recv(s, b, 8, 0));
	close(c), close(s);
}

/* Who waits in one process is woken by the other. */
static void shut_while_waiting(int how)
{
	char b[8];
	int c, s;
	pid_t pid;

	pair(AF_INET, &c, &s);
	pid = fork();
	if (pid == 0) {
		hear(ended[0]);
		nap(60);
		_exit(shutdown(s, how) < 0);
	}
	say(ended[1]);
	R(recv(s, b, 8, 0));
	finish(pid);
	/* What comes later can be read if only reading was shut. */
	if (how == SHUT_RD) {
		write_all(c, "late", 4);
		await_bytes(s, 4);
		R(recv(s, b, 8, 0));
		R(send(s, "ok", 2, 0));
		R(recv(c, b, 8, 0));
	}
	close(c), close(s);
}

static void lingers(int s) { struct linger l = { 1, 0 }; R(setsockopt(s, SOL_SOCKET, SO_LINGER, &l, sizeof l)); }
static void lingers_not(int s) { struct linger l = { 0, 0 }; R(setsockopt(s, SOL_SOCKET, SO_LINGER, &l, sizeof l)); }

static void linger(void)
{
	char b[8];
	int c, s;

	pair(AF_INET, &c, &s);
	elsewhere(lingers, s);
	close(s);
	AWAIT(c, POLLIN);
	R(recv(c, b, 8, 0));
	close(c);

	pair(AF_INET, &c, &s);
	lingers(s);
	elsewhere(lingers_not, s);
	close(s);
	AWAIT(c, POLLIN);
	R(recv(c, b, 8, 0));
	close(c);
}

/* Each writes after the other has said that it has written. */
static void order(void)
{
	char b[64] = "";
	int c, s;
	pid_t pid;

	pair(AF_INET, &c, &s);
	pid = fork();
	if (pid == 0) {
		for (int i = 0; i < 20; i++) {
			hear(ended[0]);
			write_all(s, "b", 1);
			say(begun[1]);
		}
		_exit(0);
	}
	for (int i = 0; i < 20; i++) {
		write_all(s, "a", 1);
		say(ended[1]);
		hear(begun[0]);
	}
	finish(pid);
	R(recv(c, b, 40, MSG_WAITALL));
	show("%s", b);
	close(c), close(s);
}

/* The child has used the connection last, lives, and does not read. */
static void hears_of_data(uint32_t edge)
{
	struct epoll_event ev = { .events = EPOLLIN | edge };
	int c, s, ep = epoll_create1(0);
	char b[8];
	pid_t pid;

	pair(AF_INET, &c, &s);
	ev.data.u32 = 7;
	R(epoll_ctl(ep, EPOLL_CTL_ADD, s, &ev));
	pid = fork();
	if (pid == 0) {
		write_all(s, "mine", 4);
		say(begun[1]);
		hear(ended[0]);
		R(recv(s, b, 8, MSG_DONTWAIT));
		fflush(stdout);
		say(begun[1]);
		hear(ended[0]);
		_exit(0);
	}
	hear(begun[0]);
	R(epoll_wait(ep, &ev, 1, 0));
	R(recv(c, b, 4, MSG_WAITALL));
	write_all(c, "one", 3);
	R(epoll_wait(ep, &ev, 1, 5000));
	R(ev.events);
	write_all(c, "two", 3);
	await_bytes(s, 6); /* the parent's now */
	fflush(stdout);
	say(ended[1]); /* the child takes it all */
	hear(begun[0]);
	R(recv(s, b, 8, MSG_DONTWAIT));
	for (int i = 0; i < 500 && epoll_wait(ep, &ev, 1, 0); i++)
		nap(10);
	R(epoll_wait(ep, &ev, 1, 0));
	write_all(c, "three", 5);
	R(epoll_wait(ep, &ev, 1, 5000));
	R(recv(s, b, 8, 0));
	R(shutdown(c, SHUT_WR));
	R(epoll_wait(ep, &ev, 1, 5000));
	R(recv(s, b, 8, 0));
	say(ended[1]);
	finish(pid);
	close(c), close(s), close(ep);
}

/* It waits when the data comes. */
static void sleeps_on_data(void)
{
	struct epoll_event ev = { .events = EPOLLIN | EPOLLRDHUP };
	int c, s, ep = epoll_create1(0);
	char b[8];
	pid_t pid;

	pair(AF_INET, &c, &s);
	R(epoll_ctl(ep, EPOLL_CTL_ADD, s, &ev));
	pid = fork();
	if (pid == 0) {
		write_all(s, "mine", 4);
		nap(60);
		write_all(c, "data", 4);
		hear(ended[0]);
		nap(60);
		need(shutdown(s, SHUT_RD) == 0, "shutdown");
		hear(ended[0]);
		_exit(0);
	}
	R(epoll_wait(ep, &ev, 1, 5000));
	R(recv(s, b, 8, 0));
	say(ended[1]);
	R(epoll_wait(ep, &ev, 1, 5000));
	R(ev.events & EPOLLRDHUP);
	say(ended[1]);
	finish(pid);
	close(c), close(s), close(ep);
}

int main(void)
{
	need(pipe(begun) == 0 && pipe(ended) == 0, "pipe");
	SECTION("flags and time limits");
	flags();
	SECTION("of listeners and datagram sockets");
	flags_of_others();
	SECTION("while both live");
	flags_of_the_living();
	SECTION("options");
	options();
	SECTION("shut by the child");
	shut_in_child();
	SECTION("shut by the parent");
	shut_in_parent();
	SECTION("shut while waiting");
	shut_while_waiting(SHUT_RD);
	shut_while_waiting(SHUT_RDWR);
	SECTION("linger");
	linger();
	SECTION("order");
	order();
	SECTION("hears of data");
	hears_of_data(0);
	hears_of_data(EPOLLET);
	SECTION("sleeps on data");
	sleeps_on_data();
	return 0;
}
