/* SPDX-License-Identifier: Apache-2.0 */

/*
 * socket and what a new one says of itself; what socket refuses; the kinds
 * that are not offloaded work as ever.
 */
#include "conf.h"

#include <sys/un.h>

extern int isfdtype(int fd, int type);

static void about(int fd)
{
	struct stat st;

	OPT(fd, SOL_SOCKET, SO_TYPE);
	OPT(fd, SOL_SOCKET, SO_DOMAIN);
	OPT(fd, SOL_SOCKET, SO_PROTOCOL);
	OPT(fd, SOL_SOCKET, SO_ACCEPTCONN);
	OPT(fd, SOL_SOCKET, SO_ERROR);
	R(fcntl(fd, F_GETFD));
	R(fcntl(fd, F_GETFL));
	R(fstat(fd, &st));
	show("a socket: %d", S_ISSOCK(st.st_mode));
	R(isfdtype(fd, S_IFSOCK));
	R(isfdtype(fd, S_IFREG));
	READY(fd);
	WHERE(getsockname, fd);
	WHERE(getpeername, fd);
}

static void fresh(int family, int flags)
{
	int fd = FD(socket(family, SOCK_STREAM | flags, 0));

	about(fd);
	R(close(fd));
	R(close(fd));
}

/* Each of the ends of a connection says the same of itself. */
static void connected(int family, int flags)
{
	struct sockaddr_storage at;
	int l = listener(family, &at), c, s;

	name_port(&at, "listener");
	c = FD(socket(family, SOCK_STREAM | flags, IPPROTO_TCP));
	connect(c, SA(at), addr_len(&at));
	await_events(c, POLLOUT);
	struct sockaddr_storage from = bound_to(c);
	name_port(&from, "client");
	await_events(l, POLLIN);
	s = FD(accept4(l, NULL, NULL, flags));
	about(c);
	about(s);
	OPT(l, SOL_SOCKET, SO_ACCEPTCONN);
	close(c);
	close(s);
	close(l);
}

static void refused(void)
{
	FD(socket(AF_INET, SOCK_STREAM, IPPROTO_UDP));
	FD(socket(AF_INET, SOCK_DGRAM, IPPROTO_TCP));
	FD(socket(AF_INET, 77, 0));
	FD(socket(77, SOCK_STREAM, 0));
	FD(socket(-1, SOCK_STREAM, 0));
	FD(socket(AF_INET, SOCK_STREAM, -1));
	FD(socket(AF_INET, SOCK_STREAM, 300));
	FD(socket(AF_INET, SOCK_STREAM | 0x1000000, 0));
	FD(socket(AF_INET, SOCK_SEQPACKET, 0));
}

/* Nothing of these is the shim's business. */
static void others(void)
{
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	int v[2], l, c;
	char b[8];

	R(socketpair(AF_UNIX, SOCK_STREAM, 0, v));
	R(send(v[0], "abc", 3, 0));
	R(recv(v[1], b, sizeof b, 0));
	R(shutdown(v[0], SHUT_WR));
	R(recv(v[1], b, sizeof b, 0));
	OPT(v[0], SOL_SOCKET, SO_DOMAIN);
	close(v[0]);
	close(v[1]);
	R(socketpair(AF_INET, SOCK_STREAM, 0, v));

	l = FD(socket(AF_UNIX, SOCK_STREAM, 0));
	R(bind(l, (struct sockaddr *)&un, sizeof(sa_family_t))); /* a name of the kernel's choice */
	R(listen(l, 1));
	socklen_t len = sizeof un;
	R(getsockname(l, (struct sockaddr *)&un, &len));
	c = FD(socket(AF_UNIX, SOCK_STREAM, 0));
	R(connect(c, (struct sockaddr *)&un, len));
	int s = FD(accept(l, NULL, NULL));
	R(send(c, "abcd", 4, 0));
	R(recv(s, b, sizeof b, MSG_PEEK));
	R(recv(s, b, sizeof b, 0));
	close(c);
	close(s);
	close(l);
}

int main(void)
{
	SECTION("new, IPv4");
	fresh(AF_INET, 0);
	SECTION("new, IPv6, non-blocking");
	fresh(AF_INET6, SOCK_NONBLOCK);
	SECTION("new, close on exec");
	fresh(AF_INET, SOCK_CLOEXEC);
	SECTION("connected, IPv4");
	connected(AF_INET, 0);
	SECTION("connected, IPv6, non-blocking, close on exec");
	connected(AF_INET6, SOCK_NONBLOCK | SOCK_CLOEXEC);
	SECTION("refused");
	refused();
	SECTION("other kinds");
	others();
	return 0;
}
