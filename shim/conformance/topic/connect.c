/* SPDX-License-Identifier: Apache-2.0 */

/*
 * connect: blocking and not, what a second call says, the refusals, and a
 * socket that is used again.
 */
#include "conf.h"

static void blocking(int family)
{
	struct sockaddr_storage at;
	int l = listener(family, &at), c, s;

	name_port(&at, "listener");
	c = FD(socket(family, SOCK_STREAM, 0));
	WHERE(getpeername, c);
	R(connect(c, SA(at), addr_len(&at)));
	WHERE(getpeername, c);
	s = FD(accept(l, NULL, NULL));
	WHERE(getsockname, s);
	READY(c);
	OPT(c, SOL_SOCKET, SO_ERROR);
	R(connect(c, SA(at), addr_len(&at)));
	R(connect(c, SA(at), addr_len(&at)));
	R(close(s));
	R(close(c));
	R(close(l));
}

static void nonblocking(void)
{
	struct sockaddr_storage at;
	int l = listener(AF_INET, &at), c;

	c = FD(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
	R(connect(c, SA(at), sizeof(struct sockaddr_in)));
	AWAIT(c, POLLOUT);
	READY(c);
	OPT(c, SOL_SOCKET, SO_ERROR);
	R(connect(c, SA(at), sizeof(struct sockaddr_in)));
	R(connect(c, SA(at), sizeof(struct sockaddr_in)));
	close(c);
	close(l);
}

/* A port that nobody listens on, because somebody holds it without. */
static int refusing(int family, struct sockaddr_storage *at)
{
	int fd = socket(family, SOCK_STREAM, 0);

	*at = loopback(family, 0);
	need(bind(fd, SA(*at), addr_len(at)) == 0, "bind");
	*at = bound_to(fd);
	return fd;
}

static void refused(int family)
{
	struct sockaddr_storage at;
	int holder = refusing(family, &at), c;

	c = socket(family, SOCK_STREAM, 0);
	R(connect(c, SA(at), addr_len(&at)));
	OPT(c, SOL_SOCKET, SO_ERROR);
	READY(c);
	R(connect(c, SA(at), addr_len(&at)));
	WHERE(getpeername, c);
	R(send(c, "x", 1, MSG_NOSIGNAL));
	R(recv(c, &(char){ 0 }, 1, 0));
	close(c);

	c = socket(family, SOCK_STREAM | SOCK_NONBLOCK, 0);
	R(connect(c, SA(at), addr_len(&at)));
	AWAIT(c, POLLERR);
	READY(c);
	OPT(c, SOL_SOCKET, SO_ERROR);
	OPT(c, SOL_SOCKET, SO_ERROR);
	READY(c);
	close(c);

	c = socket(family, SOCK_STREAM | SOCK_NONBLOCK, 0);
	R(connect(c, SA(at), addr_len(&at)));
	AWAIT(c, POLLERR);
	R(connect(c, SA(at), addr_len(&at)));
	OPT(c, SOL_SOCKET, SO_ERROR);
	close(c);

	c = socket(family, SOCK_STREAM | SOCK_NONBLOCK, 0);
	R(connect(c, SA(at), addr_len(&at)));
	AWAIT(c, POLLERR);
	R(send(c, "x", 1, MSG_NOSIGNAL));
	R(send(c, "x", 1, MSG_NOSIGNAL));
	R(recv(c, &(char){ 0 }, 1, 0));
	close(c);

	c = socket(family, SOCK_STREAM | SOCK_NONBLOCK, 0);
	R(connect(c, SA(at), addr_len(&at)));
	AWAIT(c, POLLERR);
	R(recv(c, &(char){ 0 }, 1, 0));
	R(recv(c, &(char){ 0 }, 1, 0));
	close(c);
	close(holder);
}

static void after_refusal(void)
{
	struct sockaddr_storage no, yes;
	int holder = refusing(AF_INET, &no), l = listener(AF_INET, &yes), c;

	name_port(&yes, "listener");
	c = socket(AF_INET, SOCK_STREAM, 0);
	R(connect(c, SA(no), sizeof(struct sockaddr_in)));
	R(connect(c, SA(yes), sizeof(struct sockaddr_in)));
	WHERE(getpeername, c);
	READY(c);
	R(send(c, "x", 1, 0));
	close(c);
	close(l);
	close(holder);
}

static void bound_first(void)
{
	struct sockaddr_storage at, from = loopback(AF_INET, 0);
	int l = listener(AF_INET, &at), c, s;

	name_port(&at, "listener");
	c = socket(AF_INET, SOCK_STREAM, 0);
	R(bind(c, SA(from), sizeof(struct sockaddr_in)));
	from = bound_to(c);
	name_port(&from, "client");
	R(connect(c, SA(at), sizeof(struct sockaddr_in)));
	WHERE(getsockname, c);
	s = FD(accept(l, NULL, NULL));
	WHERE(getpeername, s);
	R(bind(c, SA(from), sizeof(struct sockaddr_in)));
	R(listen(c, 1));
	close(c);
	close(s);
	close(l);
}

static void mistakes(void)
{
	struct sockaddr_storage at, six;
	int l = listener(AF_INET, &at), c = socket(AF_INET, SOCK_STREAM, 0);

	six = loopback(AF_INET6, 80);
	R(connect(c, SA(at), sizeof(struct sockaddr_in) - 1));
	R(connect(c, SA(at), 0));
	R(connect(c, SA(at), sizeof at));
	close(c);
	c = socket(AF_INET, SOCK_STREAM, 0);
	R(connect(c, SA(at), sizeof at + 1));
	R(connect(c, SA(six), sizeof(struct sockaddr_in6)));
	R(connect(l, SA(at), sizeof(struct sockaddr_in)));
	R(connect(-1, SA(at), sizeof(struct sockaddr_in)));
	R(connect(STDIN_FILENO, SA(at), sizeof(struct sockaddr_in)));
	close(c);
	R(connect(c, SA(at), sizeof(struct sockaddr_in)));
	close(l);
}

/* Addresses that no connection can be made to. */
static void unreachable(int family, const char *address, int flags)
{
	struct sockaddr_storage at = loopback(family, 80);
	int c = socket(family, SOCK_STREAM | flags, 0);

	if (family == AF_INET)
		inet_pton(family, address, &((struct sockaddr_in *)&at)->sin_addr);
	else
		inet_pton(family, address, &((struct sockaddr_in6 *)&at)->sin6_addr);
	R(connect(c, SA(at), addr_len(&at)));
	OPT(c, SOL_SOCKET, SO_ERROR);
	READY(c);
	close(c);
}

/* A connection that was made, used and lost before connect() was asked how it
 * went; and then another one. */
static void after_loss(void)
{
	struct sockaddr_storage at;
	int l = listener(AF_INET, &at), c = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), s;
	char b[8];

	R(connect(c, SA(at), addr_len(&at)));
	AWAIT(l, POLLIN);
	close(accept(l, NULL, NULL));
	await_events(c, POLLRDHUP);
	R(recv(c, b, 8, 0));
	R(send(c, "nobody", 6, 0));
	await_events(c, POLLERR);
	R(connect(c, SA(at), addr_len(&at)));
	R(recv(c, b, 8, 0));
	R(connect(c, SA(at), addr_len(&at)));
	AWAIT(l, POLLIN);
	s = FD(accept(l, NULL, NULL));
	await_events(c, POLLOUT);
	R(connect(c, SA(at), addr_len(&at)));
	R(send(c, "again", 5, 0));
	R(recv(s, b, 8, 0));
	R(send(s, "yes", 3, 0));
	await_bytes(c, 3);
	R(recv(c, b, 8, 0));
	R(recv(c, b, 8, 0));
	R(close(c));
	R(recv(s, b, 8, 0));
	close(s), close(l);
}

int main(void)
{
	SECTION("blocking, IPv4");
	blocking(AF_INET);
	SECTION("blocking, IPv6");
	blocking(AF_INET6);
	SECTION("non-blocking");
	nonblocking();
	SECTION("refused, IPv4");
	refused(AF_INET);
	SECTION("refused, IPv6");
	refused(AF_INET6);
	SECTION("another attempt after a refusal");
	after_refusal();
	SECTION("another after a loss");
	after_loss();
	SECTION("bound first");
	bound_first();
	SECTION("mistakes");
	mistakes();
	SECTION("groups and broadcast");
	unreachable(AF_INET, "239.10.20.30", 0);
	unreachable(AF_INET, "239.10.20.30", SOCK_NONBLOCK);
	unreachable(AF_INET, "255.255.255.255", 0);
	unreachable(AF_INET6, "ff0e::1", 0);
	unreachable(AF_INET6, "::ffff:224.0.0.1", SOCK_NONBLOCK);
	return 0;
}
