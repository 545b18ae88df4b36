/* SPDX-License-Identifier: Apache-2.0 */

/*
 * accept and accept4: addresses, flags, what is inherited, an empty queue, and
 * connections that have ended before they are accepted.
 */
#include "conf.h"

#define LEN sizeof(struct sockaddr_in)

static int nonblocking_listener(struct sockaddr_storage *at)
{
	int l = listener(AF_INET, at);

	need(fcntl(l, F_SETFL, O_NONBLOCK) == 0, "fcntl");
	return l;
}

static void addresses(int family)
{
	struct sockaddr_storage at, who, from;
	int l = listener(family, &at), c, s;
	socklen_t len = sizeof who;

	c = dial(&at);
	from = bound_to(c);
	name_port(&from, "client");
	name_port(&at, "listener");
	s = FD(accept(l, SA(who), &len));
	show_addr("peer", &who, len);
	WHERE(getsockname, s);
	WHERE(getpeername, s);
	close(s);
	close(c);

	/* Too little room: the length tells how much there was. */
	c = dial(&at);
	memset(&who, 'x', sizeof who);
	len = 4;
	s = FD(accept(l, SA(who), &len));
	show("length %u, family %d, beyond %c", len, who.ss_family, ((char *)&who)[4]);
	close(s);
	close(c);

	c = dial(&at);
	len = 0;
	s = FD(accept(l, SA(who), &len));
	show("length %u", len);
	close(s);
	close(c);
	close(l);
}

static void flags(void)
{
	struct sockaddr_storage at;
	int l = nonblocking_listener(&at), c[3], s;

	FD(accept(l, NULL, NULL));
	FD(accept4(l, NULL, NULL, SOCK_NONBLOCK));
	READY(l);
	for (int i = 0; i < 3; i++)
		c[i] = dial(&at);
	AWAIT(l, POLLIN);
	READY(l);
	s = FD(accept(l, NULL, NULL));
	R(fcntl(s, F_GETFL));
	R(fcntl(s, F_GETFD));
	close(s);
	await_events(l, POLLIN);
	s = FD(accept4(l, NULL, NULL, SOCK_NONBLOCK));
	R(fcntl(s, F_GETFL));
	R(fcntl(s, F_GETFD));
	R(recv(s, &(char){ 0 }, 1, 0));
	close(s);
	await_events(l, POLLIN);
	FD(accept4(l, NULL, NULL, 1));
	s = FD(accept4(l, NULL, NULL, SOCK_CLOEXEC));
	R(fcntl(s, F_GETFL));
	R(fcntl(s, F_GETFD));
	close(s);
	FD(accept(l, NULL, NULL));
	READY(l);
	for (int i = 0; i < 3; i++)
		close(c[i]);
	close(l);
}

/* In the order in which they came. */
static void queue(void)
{
	struct sockaddr_storage at;
	int l = listener(AF_INET, &at), c[4], s;
	char b;

	for (int i = 0; i < 4; i++) {
		c[i] = dial(&at);
		need(send(c[i], &"abcd"[i], 1, 0) == 1, "send");
	}
	for (int i = 0; i < 4; i++) {
		s = FD(accept(l, NULL, NULL));
		R(recv(s, &b, 1, 0));
		show("%c", b);
		close(s);
	}
	for (int i = 0; i < 4; i++)
		close(c[i]);
	close(l);
}

static void inherited(void)
{
	struct sockaddr_storage at = loopback(AF_INET, 0);
	struct timeval t = { 3, 0 };
	struct linger g = { 1, 7 };
	socklen_t len;
	int l = socket(AF_INET, SOCK_STREAM, 0), c, s;

	SETOPT(l, SOL_SOCKET, SO_KEEPALIVE, 1);
	SETOPT(l, IPPROTO_TCP, TCP_NODELAY, 1);
	SETOPT(l, IPPROTO_TCP, TCP_KEEPIDLE, 77);
	SETOPT(l, SOL_SOCKET, SO_RCVBUF, 30000);
	R(setsockopt(l, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t));
	R(setsockopt(l, SOL_SOCKET, SO_LINGER, &g, sizeof g));
	bind(l, SA(at), LEN);
	R(listen(l, 1));
	at = bound_to(l);
	c = dial(&at);
	s = FD(accept(l, NULL, NULL));
	OPT(s, SOL_SOCKET, SO_KEEPALIVE);
	OPT(s, IPPROTO_TCP, TCP_NODELAY);
	OPT(s, IPPROTO_TCP, TCP_KEEPIDLE);
	OPT(s, SOL_SOCKET, SO_REUSEADDR);
	t.tv_sec = 0;
	len = sizeof t;
	R(getsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &t, &len));
	show("%ld s, %u bytes", (long)t.tv_sec, len);
	g.l_linger = 0;
	len = sizeof g;
	R(getsockopt(s, SOL_SOCKET, SO_LINGER, &g, &len));
	show("%d %d, %u bytes", g.l_onoff, g.l_linger, len);
	close(s);
	close(c);
	close(l);
}

static void ended_before(void)
{
	struct linger reset = { 1, 0 };
	struct sockaddr_storage at, who;
	socklen_t len = sizeof who;
	int l = listener(AF_INET, &at), c, s;
	char b[8];

	c = dial(&at);
	send(c, "bye", 3, 0);
	close(c);
	AWAIT(l, POLLIN);
	s = FD(accept(l, SA(who), &len));
	R(recv(s, b, sizeof b, MSG_WAITALL));
	R(recv(s, b, sizeof b, 0));
	close(s);

	c = dial(&at);
	setsockopt(c, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
	close(c);
	nap(50);
	s = FD(accept(l, SA(who), &len));
	AWAIT(s, POLLERR);
	R(recv(s, b, sizeof b, 0));
	R(recv(s, b, sizeof b, 0));
	close(s);
	close(l);
}

static void not_listening(void)
{
	struct sockaddr_storage at;
	int l = listener(AF_INET, &at), fd = socket(AF_INET, SOCK_STREAM, 0), c = dial(&at);

	FD(accept(fd, NULL, NULL));
	bind(fd, SA((struct sockaddr_storage){ .ss_family = AF_INET }), LEN);
	FD(accept(fd, NULL, NULL));
	FD(accept(c, NULL, NULL));
	FD(accept(-1, NULL, NULL));
	FD(accept(STDIN_FILENO, NULL, NULL));
	close(fd);
	FD(accept(fd, NULL, NULL));
	close(c);
	close(l);
}

/* How HAProxy pauses. The port stays, for the program has named it. */
static void shut_down(void)
{
	struct sockaddr_storage at;
	int l = nonblocking_listener(&at), c;

	close(l);
	l = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	R(bind(l, SA(at), LEN));
	R(listen(l, 4));
	R(shutdown(l, SHUT_RD));
	FD(accept(l, NULL, NULL));
	READY(l);
	OPT(l, SOL_SOCKET, SO_ACCEPTCONN);
	c = socket(AF_INET, SOCK_STREAM, 0);
	R(connect(c, SA(at), LEN));
	close(c);
	R(listen(l, 4));
	OPT(l, SOL_SOCKET, SO_ACCEPTCONN);
	WHERE(getpeername, l);
	c = FD(socket(AF_INET, SOCK_STREAM, 0));
	R(connect(c, SA(at), LEN));
	AWAIT(l, POLLIN);
	FD(accept(l, NULL, NULL));
	close(c);
	R(shutdown(l, SHUT_WR));
	FD(accept(l, NULL, NULL));
	close(l);
}

/* What a listener says to calls that are meant for connections. */
static void as_connection(void)
{
	struct sockaddr_storage at;
	int l = listener(AF_INET, &at), n;
	char b[4];

	R(send(l, "x", 1, MSG_NOSIGNAL));
	R(recv(l, b, sizeof b, 0));
	R(read(l, b, sizeof b));
	R(ioctl(l, FIONREAD, &n));
	R(ioctl(l, TIOCOUTQ, &n));
	WHERE(getpeername, l);
	OPT(l, SOL_SOCKET, SO_ERROR);
	close(l);
}

/* A listener holds one connection more than was asked for. */
static void backlog(int n)
{
	struct sockaddr_storage at = loopback(AF_INET, 0);
	int l = socket(AF_INET, SOCK_STREAM, 0), c[4], done = 0;

	need(bind(l, SA(at), addr_len(&at)) == 0, "bind");
	R(listen(l, n));
	at = bound_to(l);
	for (int i = 0; i < 4; i++) {
		c[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
		need(connect(c[i], SA(at), addr_len(&at)) == -1 && errno == EINPROGRESS, "connect");
		nap(20);
	}
	nap(100);
	for (int i = 0; i < 4; i++) {
		struct pollfd p = { c[i], POLLOUT, 0 };

		done += poll(&p, 1, 0) == 1;
		close(c[i]);
	}
	R(done);
	close(l);
}

int main(void)
{
	SECTION("addresses, IPv4");
	addresses(AF_INET);
	SECTION("addresses, IPv6");
	addresses(AF_INET6);
	SECTION("flags");
	flags();
	SECTION("queue");
	queue();
	SECTION("inherited options");
	inherited();
	SECTION("ended before");
	ended_before();
	SECTION("not listening");
	not_listening();
	SECTION("shut down and resumed");
	shut_down();
	SECTION("as a connection");
	as_connection();
	SECTION("backlog");
	backlog(0);
	backlog(1);
	backlog(2);
	backlog(-1);
	return 0;
}
