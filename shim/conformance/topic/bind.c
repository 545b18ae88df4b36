/* SPDX-License-Identifier: Apache-2.0 */

/*
 * bind: addresses and ports, what is in use, reuse, and mistakes.
 */
#include "conf.h"

#include <sys/epoll.h>

#define LEN sizeof(struct sockaddr_in)

static int fresh(int family)
{
	int fd = socket(family, SOCK_STREAM, 0);

	need(fd >= 0, "socket");
	return fd;
}

static void any_port(int family)
{
	struct sockaddr_storage a = loopback(family, 0);
	int fd = fresh(family);

	R(bind(fd, SA(a), addr_len(&a)));
	WHERE(getsockname, fd);
	WHERE(getpeername, fd);
	R(bind(fd, SA(a), addr_len(&a)));
	READY(fd);
	R(listen(fd, 1));
	WHERE(getsockname, fd);
	R(bind(fd, SA(a), addr_len(&a)));
	close(fd);
}

static void wildcard(int family)
{
	struct sockaddr_storage a = { .ss_family = family };
	int fd = fresh(family);

	R(bind(fd, SA(a), addr_len(&a)));
	WHERE(getsockname, fd);
	R(listen(fd, 1));
	WHERE(getsockname, fd);
	close(fd);
}

/* listen alone takes a port. */
static void unbound(int family)
{
	int fd = fresh(family);

	R(listen(fd, 1));
	WHERE(getsockname, fd);
	struct sockaddr_storage a = bound_to(fd);
	show("a port: %d", ((struct sockaddr_in *)&a)->sin_port != 0);
	close(fd);
}

static void in_use(void)
{
	struct sockaddr_storage at, any = { .ss_family = AF_INET };
	int l = listener(AF_INET, &at), a = fresh(AF_INET), b = fresh(AF_INET);

	R(bind(a, SA(at), LEN));
	WHERE(getsockname, a);
	((struct sockaddr_in *)&any)->sin_port = ((struct sockaddr_in *)&at)->sin_port;
	R(bind(a, SA(any), LEN));
	R(close(l));
	R(bind(a, SA(at), LEN));
	R(bind(b, SA(at), LEN));
	R(close(a));
	R(bind(b, SA(at), LEN));
	close(b);
}

static void reuse_address(void)
{
	struct sockaddr_storage at = loopback(AF_INET, 0);
	int a = fresh(AF_INET), b = fresh(AF_INET), c = fresh(AF_INET);

	SETOPT(a, SOL_SOCKET, SO_REUSEADDR, 1);
	SETOPT(b, SOL_SOCKET, SO_REUSEADDR, 1);
	R(bind(a, SA(at), LEN));
	at = bound_to(a);
	R(bind(b, SA(at), LEN)); /* neither listens */
	R(bind(c, SA(at), LEN)); /* has not asked for it */
	R(listen(a, 1));
	R(listen(b, 1));
	close(b);
	b = fresh(AF_INET);
	SETOPT(b, SOL_SOCKET, SO_REUSEADDR, 1);
	R(bind(b, SA(at), LEN)); /* now one listens */
	close(a);
	close(b);
	close(c);
}

static void reuse_port(void)
{
	struct sockaddr_storage at = loopback(AF_INET, 0);
	int a = fresh(AF_INET), b = fresh(AF_INET), c = fresh(AF_INET);

	SETOPT(a, SOL_SOCKET, SO_REUSEPORT, 1);
	SETOPT(b, SOL_SOCKET, SO_REUSEPORT, 1);
	R(bind(a, SA(at), LEN));
	at = bound_to(a);
	R(listen(a, 1));
	R(bind(b, SA(at), LEN));
	R(listen(b, 1));
	R(bind(c, SA(at), LEN));
	close(a);
	close(b);
	close(c);
}

static int reusing(struct sockaddr_storage *at)
{
	int fd = fresh(AF_INET);

	SETOPT(fd, SOL_SOCKET, SO_REUSEADDR, 1);
	R(bind(fd, SA(*at), LEN));
	R(listen(fd, 1));
	*at = bound_to(fd);
	return fd;
}

/* A server that is started again at once. */
static void again(void)
{
	struct sockaddr_storage at = loopback(AF_INET, 0);
	int l = reusing(&at), c, s;
	char b[1];

	c = dial(&at);
	s = accept(l, NULL, NULL);
	R(close(s)); /* this end goes to TIME_WAIT */
	R(recv(c, b, sizeof b, 0));
	R(close(c));
	R(close(l));
	l = reusing(&at);
	c = dial(&at);
	s = FD(accept(l, NULL, NULL));
	close(s);
	close(c);
	close(l);
}

/* While a connection lives, its listener's port is taken. */
static void survivor(void)
{
	struct sockaddr_storage at;
	int l = listener(AF_INET, &at), c, s;

	c = dial(&at);
	s = accept(l, NULL, NULL);
	R(close(l));
	l = fresh(AF_INET);
	R(bind(l, SA(at), LEN));
	SETOPT(l, SOL_SOCKET, SO_REUSEADDR, 1);
	R(bind(l, SA(at), LEN));
	close(c);
	close(s);
	close(l);
}

static void mistakes(void)
{
	struct sockaddr_storage at = loopback(AF_INET, 0), six = loopback(AF_INET6, 0);
	int fd = fresh(AF_INET), fd6 = fresh(AF_INET6);

	R(bind(fd, SA(at), LEN - 1));
	R(bind(fd, SA(at), 0));
	R(bind(fd, SA(at), sizeof at + 1));
	R(bind(fd, SA(at), -1));
	R(bind(fd, SA(six), sizeof(struct sockaddr_in6)));
	R(bind(fd6, SA(at), LEN));
	R(bind(fd6, SA(six), 24));
	WHERE(getsockname, fd6);
	inet_pton(AF_INET, "192.0.2.1", &((struct sockaddr_in *)&at)->sin_addr);
	R(bind(fd, SA(at), LEN));
	WHERE(getsockname, fd);
	R(bind(-1, SA(at), LEN));
	R(bind(1000000, SA(at), LEN));
	R(bind(STDIN_FILENO, SA(at), LEN));
	at = loopback(AF_INET, 0);
	R(bind(fd, SA(at), LEN)); /* no mistake has done harm */
	R(bind(fd, SA(six), sizeof(struct sockaddr_in6)));
	R(bind(fd, SA(at), 3));
	R(listen(fd, 1));
	struct sockaddr_storage where = bound_to(fd);
	int c = FD(socket(AF_INET, SOCK_STREAM, 0));
	R(connect(c, SA(where), LEN));
	close(c);
	close(fd);
	close(fd6);
	R(bind(fd, SA(at), LEN));
}

static void reset_by(int peer)
{
	setsockopt(peer, SOL_SOCKET, SO_LINGER, &(struct linger){ 1, 0 }, sizeof(struct linger));
	close(peer);
}

/* A connection that is over has given its port back: its socket can be bound,
 * though it is of no use before connect has said what became of it. */
static void after_reset(bool accepted)
{
	struct sockaddr_storage at, any = loopback(AF_INET, 0), mine;
	int l = listener(AF_INET, &at), c = dial(&at), s = accept(l, NULL, NULL), other = fresh(AF_INET);
	char b[1];

	reset_by(accepted ? c : s);
	if (accepted)
		c = s;
	await_events(c, POLLERR);
	mine = bound_to(c);
	name_port(&mine, "of the connection");
	R(bind(c, SA(at), LEN));
	WHERE(getsockname, c);
	R(bind(c, SA(any), LEN));
	R(bind(c, SA(any), LEN));
	mine = bound_to(c);
	name_port(&mine, "after a reset");
	WHERE(getsockname, c);
	WHERE(getpeername, c);
	READY(c);
	R(recv(c, b, 1, 0));
	R(recv(c, b, 1, 0));
	R(send(c, "x", 1, MSG_NOSIGNAL));
	R(shutdown(c, SHUT_RDWR));
	R(connect(c, SA(at), LEN));
	R(listen(c, 1));
	R(bind(other, SA(mine), LEN));
	R(close(c));
	R(bind(other, SA(mine), LEN));
	close(other);
	close(l);
}

static void after_both_ends(void)
{
	struct sockaddr_storage any = loopback(AF_INET, 0);
	char b[4];
	int c, s;

	pair(AF_INET, &c, &s);
	R(send(s, "left", 4, 0));
	R(shutdown(s, SHUT_WR));
	await_events(c, POLLRDHUP);
	R(bind(c, SA(any), LEN));
	R(shutdown(c, SHUT_WR));
	await_events(s, POLLHUP);
	R(bind(c, SA(any), LEN));
	R(recv(c, b, 4, 0));
	R(recv(c, b, 4, 0));
	R(bind(c, SA(any), LEN));
	close(c);
	close(s);
}

/* What bind had named is kept. */
static void after_named(void)
{
	struct sockaddr_storage at, named = loopback(AF_INET, 0), any = named;
	int l = listener(AF_INET, &at), c = fresh(AF_INET), s;

	s = fresh(AF_INET);
	need(bind(s, SA(named), LEN) == 0, "bind");
	named = bound_to(s);
	close(s);
	R(bind(c, SA(named), LEN));
	R(connect(c, SA(at), LEN));
	reset_by(accept(l, NULL, NULL));
	await_events(c, POLLERR);
	R(bind(c, SA(any), LEN));
	close(c);
	close(l);
}

/* An attempt that failed, and of which nobody was told. */
static void after_refusal(void)
{
	struct sockaddr_storage at, no = loopback(AF_INET, 0), any = no, mine;
	int l = listener(AF_INET, &at), holder = fresh(AF_INET), c = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);

	need(bind(holder, SA(no), LEN) == 0, "bind");
	no = bound_to(holder);
	R(connect(c, SA(no), LEN));
	await_events(c, POLLERR);
	R(bind(c, SA(any), LEN));
	mine = bound_to(c);
	name_port(&mine, "after a refusal");
	WHERE(getsockname, c);
	R(connect(c, SA(at), LEN));
	R(bind(c, SA(any), LEN));
	WHERE(getsockname, c);
	READY(c);
	R(connect(c, SA(at), LEN));
	AWAIT(c, POLLOUT);
	WHERE(getsockname, c);
	close(c);
	close(holder);
	close(l);
}

/* Who has been disconnected is told of it when the next connection is made, and
 * not before. */
static void after_disconnect(void)
{
	struct sockaddr_storage at, any = loopback(AF_INET, 0), mine;
	struct sockaddr none = { .sa_family = AF_UNSPEC };
	int l = listener(AF_INET, &at), c = dial(&at), s = accept(l, NULL, NULL);

	R(connect(c, &none, sizeof none));
	R(bind(c, SA(any), LEN));
	R(bind(c, SA(any), LEN));
	mine = bound_to(c);
	name_port(&mine, "after a disconnect");
	READY(c);
	R(send(c, "x", 1, MSG_NOSIGNAL));
	R(send(c, "x", 1, MSG_NOSIGNAL));
	R(connect(c, SA(at), LEN));
	WHERE(getsockname, c);
	close(accept(l, NULL, NULL));
	close(s);
	close(c);

	/* an error from before it stays */
	c = dial(&at);
	s = accept(l, NULL, NULL);
	close(c);
	await_events(s, POLLRDHUP);
	R(send(s, "x", 1, 0));
	await_events(s, POLLERR);
	R(connect(s, &none, sizeof none));
	R(recv(s, &(char){ 0 }, 1, 0));
	R(recv(s, &(char){ 0 }, 1, 0));
	R(listen(s, 1));
	close(s);
	close(l);
}

/* Nothing is bound twice; but first the address is looked at. */
static void foreign(void)
{
	struct sockaddr_storage at, away = loopback(AF_INET, 0);
	int l = listener(AF_INET, &at), c = dial(&at), s = accept(l, NULL, NULL);

	inet_pton(AF_INET, "192.0.2.1", &((struct sockaddr_in *)&away)->sin_addr);
	R(bind(l, SA(away), LEN));
	R(bind(c, SA(away), LEN));
	R(bind(s, SA(away), LEN));
	R(bind(c, SA(at), LEN));
	R(send(c, "x", 1, 0));
	R(recv(s, &(char){ 0 }, 1, 0));
	close(c);
	close(s);
	close(l);
}

static void listen_calls(void)
{
	struct sockaddr_storage at;
	int fd = listener(AF_INET, &at), c = dial(&at);

	R(listen(fd, 5));
	R(listen(fd, 0));
	R(listen(fd, -1));
	R(listen(c, 1));
	R(listen(-1, 1));
	R(listen(STDIN_FILENO, 1));
	int u = socket(AF_INET, SOCK_DGRAM, 0);
	R(listen(u, 1));
	close(u);
	close(c);
	close(fd);
	R(listen(fd, 1));
}

/* Closed by a poller that has a channel of its own, and at once bound again. */
static void at_once(void)
{
	struct sockaddr_storage at = loopback(AF_INET, 0);
	int failed = 0;

	for (int i = 0; i < 100; i++) {
		int l = socket(AF_INET, SOCK_STREAM, 0), e = epoll_create1(0);
		struct epoll_event ev = { .events = EPOLLIN };

		need(setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &(int){ 1 }, sizeof(int)) == 0, "SO_REUSEADDR");
		failed += bind(l, SA(at), addr_len(&at)) < 0 || listen(l, 5) < 0;
		at = bound_to(l);
		epoll_ctl(e, EPOLL_CTL_ADD, l, &ev);
		epoll_wait(e, &ev, 1, 0);
		close(l);
		close(e);
	}
	R(failed);
}

int main(void)
{
	SECTION("port of the stack's choice, IPv4");
	any_port(AF_INET);
	SECTION("port of the stack's choice, IPv6");
	any_port(AF_INET6);
	SECTION("wildcard, IPv4");
	wildcard(AF_INET);
	SECTION("wildcard, IPv6");
	wildcard(AF_INET6);
	SECTION("listen without bind, IPv4");
	unbound(AF_INET);
	SECTION("listen without bind, IPv6");
	unbound(AF_INET6);
	SECTION("in use");
	in_use();
	SECTION("SO_REUSEADDR");
	reuse_address();
	SECTION("SO_REUSEPORT");
	reuse_port();
	SECTION("a server again");
	again();
	SECTION("a server again, at once");
	at_once();
	SECTION("a connection that outlives its listener");
	survivor();
	SECTION("after a reset");
	after_reset(false);
	SECTION("after a reset, accepted");
	after_reset(true);
	SECTION("after both ends");
	after_both_ends();
	SECTION("after a reset, with a port of its own");
	after_named();
	SECTION("after a refusal");
	after_refusal();
	SECTION("after a disconnect");
	after_disconnect();
	SECTION("bound already");
	foreign();
	SECTION("mistakes");
	mistakes();
	SECTION("listen");
	listen_calls();
	return 0;
}
