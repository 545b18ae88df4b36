/* SPDX-License-Identifier: Apache-2.0 */

/*
 * close: orderly, with unread data, with SO_LINGER, and what the peer can
 * still do.
 */
#include "conf.h"

static char b[1 << 16];

static void orderly(int family)
{
	int c, s;

	pair(family, &c, &s);
	R(send(s, "last words", 10, 0));
	R(close(s));
	AWAIT(c, POLLRDHUP);
	READY(c);
	R(recv(c, b, 10, MSG_WAITALL));
	R(recv(c, b, 10, 0));
	READY(c);
	/* the first write is answered by a reset */
	R(send(c, "x", 1, MSG_NOSIGNAL));
	AWAIT(c, POLLERR);
	R(recv(c, b, 10, 0));
	R(send(c, "x", 1, MSG_NOSIGNAL));
	READY(c);
	R(recv(c, b, 10, 0));
	close(c);
}

static void with_unread_data(void)
{
	int c, s;

	pair(AF_INET, &c, &s);
	R(send(c, "nobody reads this", 17, 0));
	AWAIT(s, POLLIN);
	R(close(s));
	AWAIT(c, POLLERR);
	READY(c);
	OPT(c, SOL_SOCKET, SO_ERROR);
	OPT(c, SOL_SOCKET, SO_ERROR);
	READY(c);
	R(recv(c, b, 10, 0));
	R(send(c, "x", 1, MSG_NOSIGNAL));
	WHERE(getpeername, c);
	R(shutdown(c, SHUT_WR));
	close(c);

	/* partly read is unread, too */
	pair(AF_INET, &c, &s);
	R(send(c, "nobody reads this", 17, 0));
	R(recv(s, b, 3, MSG_WAITALL));
	R(close(s));
	AWAIT(c, POLLERR);
	R(recv(c, b, 10, 0));
	R(recv(c, b, 10, 0));
	R(send(c, "x", 1, MSG_NOSIGNAL));
	close(c);

	/* and read is read */
	pair(AF_INET, &c, &s);
	R(send(c, "read this", 9, 0));
	R(recv(s, b, 9, MSG_WAITALL));
	R(close(s));
	AWAIT(c, POLLRDHUP);
	R(recv(c, b, 10, 0));
	close(c);
}

/* What was received before the reset: gone, with the first error. */
static void reset_after_data(void)
{
	struct linger reset = { 1, 0 };
	int c, s;

	pair(AF_INET, &c, &s);
	R(send(s, "data", 4, 0));
	AWAIT(c, POLLIN);
	R(setsockopt(s, SOL_SOCKET, SO_LINGER, &reset, sizeof reset));
	R(close(s));
	AWAIT(c, POLLERR);
	READY(c);
	R(send(c, "x", 1, MSG_NOSIGNAL));
	R(send(c, "x", 1, MSG_NOSIGNAL));
	close(c);
}

static void linger_zero(void)
{
	struct linger l = { 1, 0 };
	socklen_t len = sizeof l;
	int c, s;

	pair(AF_INET, &c, &s);
	R(setsockopt(s, SOL_SOCKET, SO_LINGER, &l, sizeof l));
	R(getsockopt(s, SOL_SOCKET, SO_LINGER, &l, &len));
	show("%d %d, %u bytes", l.l_onoff, l.l_linger, len);
	R(close(s));
	AWAIT(c, POLLERR);
	READY(c);
	R(recv(c, b, 10, 0));
	R(recv(c, b, 10, 0));
	READY(c);
	close(c);

	/* and back */
	pair(AF_INET, &c, &s);
	R(setsockopt(s, SOL_SOCKET, SO_LINGER, &l, sizeof l));
	l.l_onoff = 0;
	R(setsockopt(s, SOL_SOCKET, SO_LINGER, &l, sizeof l));
	R(close(s));
	AWAIT(c, POLLRDHUP);
	R(recv(c, b, 10, 0));
	close(c);
}

/* close waits until the peer has acknowledged everything, or the time is over. */
static void linger_positive(void)
{
	struct linger l = { 1, 10 };
	int c, s;

	pair(AF_INET, &c, &s);
	R(setsockopt(s, SOL_SOCKET, SO_LINGER, &l, sizeof l));
	R(send(s, "last", 4, 0));
	TIMED(0, 5000, close(s)); /* the peer's stack has it */
	R(recv(c, b, 4, MSG_WAITALL));
	R(recv(c, b, 4, 0));
	close(c);
}

static void with_blocked_reader(void)
{
	int c, s;

	pair(AF_INET, &c, &s);
	if (fork() == 0) {
		close(c);
		nap(80);
		_exit(0); /* its copy of s was the last */
	}
	close(s);
	TIMED(40, 4000, recv(c, b, 10, 0));
	wait(NULL);
	close(c);
}

static void listener_with_connections(void)
{
	struct sockaddr_storage at;
	int l = listener(AF_INET, &at), c = dial(&at);

	await_events(l, POLLIN); /* until the handshake is over at this end, too */
	R(close(l)); /* nobody has accepted it */
	AWAIT(c, POLLERR);
	R(recv(c, b, 10, 0));
	close(c);
	c = socket(AF_INET, SOCK_STREAM, 0);
	R(connect(c, SA(at), sizeof(struct sockaddr_in)));
	close(c);
}

/* An orderly close while the peer still sends. */
static void in_both_directions(void)
{
	size_t sent = 0;
	int c, s, i;

	pair(AF_INET, &c, &s);
	R(send(s, "bye", 3, 0));
	R(shutdown(s, SHUT_WR));
	R(send(c, "more", 4, 0));
	R(recv(s, b, 4, MSG_WAITALL));
	R(recv(c, b, 3, MSG_WAITALL));
	R(recv(c, b, 3, 0));
	R(close(s));
	for (i = 0; i < 500 && send(c, b, 1, MSG_NOSIGNAL) == 1; i++) {
		sent++;
		nap(2);
	}
	show("some went: %d, all: %d", sent > 0, sent == 500);
	R(send(c, b, 1, MSG_NOSIGNAL));
	close(c);
}

int main(void)
{
	SECTION("orderly, IPv4");
	orderly(AF_INET);
	SECTION("orderly, IPv6");
	orderly(AF_INET6);
	SECTION("with unread data");
	with_unread_data();
	SECTION("reset after data");
	reset_after_data();
	SECTION("SO_LINGER 0");
	linger_zero();
	SECTION("SO_LINGER 1");
	linger_positive();
	SECTION("by the end of a process");
	with_blocked_reader();
	SECTION("listener with connections");
	listener_with_connections();
	SECTION("while the peer sends");
	in_both_directions();
	return 0;
}
