/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What is known right after a non-blocking connect on the loopback: the names,
 * and how it ended.
 */
#include "conf.h"

static void accepted(int family)
{
	struct sockaddr_storage at, me;
	socklen_t len = sizeof me;
	int l = listener(family, &at), c, s;

	name_port(&at, "listener");
	c = FD(socket(family, SOCK_STREAM | SOCK_NONBLOCK, 0));
	R(connect(c, SA(at), addr_len(&at)));
	R(getsockname(c, SA(me), &len));
	name_port(&me, "client");
	WHERE(getsockname, c);
	WHERE(getpeername, c);
	READY(c);
	R(write(c, "x", 1));
	s = FD(accept(l, NULL, NULL));
	WHERE(getpeername, s);
	close(s);
	close(c);
	close(l);
}

static void refused(int family)
{
	struct sockaddr_storage at = loopback(family, 0);
	int holder = socket(family, SOCK_STREAM, 0), c;

	need(bind(holder, SA(at), addr_len(&at)) == 0, "bind");
	at = bound_to(holder);
	c = FD(socket(family, SOCK_STREAM | SOCK_NONBLOCK, 0));
	R(connect(c, SA(at), addr_len(&at)));
	READY(c);
	WHERE(getpeername, c);
	OPT(c, SOL_SOCKET, SO_ERROR);
	close(c);
	close(holder);
}

/* The next connect tells how the one before went, once; then it begins anew. */
static void again(void)
{
	struct sockaddr_storage at = loopback(AF_INET, 0);
	int holder = socket(AF_INET, SOCK_STREAM, 0), c, s;

	need(bind(holder, SA(at), addr_len(&at)) == 0, "bind");
	at = bound_to(holder);
	c = FD(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
	for (int i = 0; i < 2; i++) {
		R(connect(c, SA(at), addr_len(&at)));
		await_events(c, POLLHUP);
		OPT(c, SOL_SOCKET, SO_ERROR);
		R(connect(c, SA(at), addr_len(&at)));
		READY(c);
	}
	R(connect(c, SA(at), addr_len(&at)));
	await_events(c, POLLHUP);
	R(connect(c, SA(at), addr_len(&at)));
	need(listen(holder, 5) == 0, "listen");
	R(connect(c, SA(at), addr_len(&at)));
	AWAIT(c, POLLOUT);
	s = FD(accept(holder, NULL, NULL));
	R(write(c, "x", 1));
	AWAIT(s, POLLIN);
	close(s), close(c), close(holder);
}

/* Nor does anything of a connection that was reset remain in the next. */
static void after_reset(void)
{
	struct linger hard = { .l_onoff = 1 };
	struct sockaddr_storage at;
	char buf[8];
	int l = listener(AF_INET, &at), c, s;

	c = FD(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
	R(connect(c, SA(at), addr_len(&at)));
	s = FD(accept(l, NULL, NULL));
	R(write(c, "before", 6));
	R(write(s, "unread", 6));
	await_bytes(c, 6);
	await_bytes(s, 6);
	need(setsockopt(s, SOL_SOCKET, SO_LINGER, &hard, sizeof hard) == 0, "SO_LINGER");
	close(s);
	AWAIT(c, POLLERR);
	R(connect(c, SA(at), addr_len(&at)));
	READY(c);
	R(recv(c, buf, sizeof buf, 0));
	R(connect(c, SA(at), addr_len(&at)));
	s = FD(accept(l, NULL, NULL));
	R(recv(c, buf, sizeof buf, 0));
	R(write(c, "after", 5));
	AWAIT(s, POLLIN);
	R(recv(s, buf, sizeof buf, 0));
	show_bytes("got", buf, 5);
	R(write(s, "too", 3));
	AWAIT(c, POLLIN);
	R(recv(c, buf, sizeof buf, 0));
	close(s), close(c), close(l);
}

/* The peer is gone, and what it sent before is still here. */
static void reset(void)
{
	struct linger hard = { .l_onoff = 1 };
	char buf[8];
	int c, s;

	pair(AF_INET, &c, &s);
	R(setsockopt(c, SOL_SOCKET, SO_LINGER, &hard, sizeof hard));
	R(write(c, "last", 4));
	await_events(s, POLLIN);
	R(close(c));
	nap(100);
	WHERE(getpeername, s);
	R(read(s, buf, sizeof buf));
	close(s);
}

int main(void)
{
	SECTION("IPv4");
	accepted(AF_INET);
	SECTION("IPv6");
	accepted(AF_INET6);
	SECTION("refused");
	refused(AF_INET);
	refused(AF_INET6);
	SECTION("again");
	again();
	SECTION("again after a reset");
	after_reset();
	SECTION("reset");
	reset();
	return 0;
}
