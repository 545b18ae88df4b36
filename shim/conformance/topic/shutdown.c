/* SPDX-License-Identifier: Apache-2.0 */

/*
 * shutdown of each half, and what either end sees of it.
 */
#include "conf.h"

static char b[64];

static void write_half(int family)
{
	int c, s;

	pair(family, &c, &s);
	R(send(c, "last", 4, 0));
	R(shutdown(c, SHUT_WR));
	R(send(c, "x", 1, MSG_NOSIGNAL));
	READY(c);
	AWAIT(s, POLLRDHUP);
	READY(s);
	R(recv(s, b, sizeof b, 0));
	READY(s);
	R(recv(s, b, sizeof b, 0));
	R(recv(s, b, sizeof b, MSG_DONTWAIT));
	/* the other half lives on */
	R(send(s, "answer", 6, 0));
	R(recv(c, b, 6, MSG_WAITALL));
	WHERE(getpeername, c);
	R(shutdown(c, SHUT_WR));
	R(shutdown(s, SHUT_WR));
	AWAIT(c, POLLHUP);
	READY(c);
	R(recv(c, b, sizeof b, 0));
	R(send(s, "x", 1, MSG_NOSIGNAL));
	OPT(c, SOL_SOCKET, SO_ERROR);
	close(c);
	close(s);
}

static void read_half(void)
{
	int c, s;

	pair(AF_INET, &c, &s);
	R(send(c, "early", 5, 0));
	AWAIT(s, POLLIN);
	R(shutdown(s, SHUT_RD));
	READY(s);
	R(recv(s, b, sizeof b, 0)); /* what was there is still given */
	R(recv(s, b, sizeof b, 0));
	R(send(s, "still", 5, 0));
	R(recv(c, b, 5, MSG_WAITALL));
	close(c);
	close(s);

	pair(AF_INET, &c, &s);
	R(shutdown(s, SHUT_RD));
	READY(s);
	R(recv(s, b, sizeof b, 0));
	R(read(s, b, sizeof b));
	READY(c);
	R(send(c, "late", 4, MSG_NOSIGNAL));
	R(shutdown(s, SHUT_WR));
	AWAIT(c, POLLRDHUP);
	READY(s);
	close(c);
	close(s);
}

static void both_halves(void)
{
	struct sockaddr_storage at;
	socklen_t len = sizeof at;
	int c, s;

	pair(AF_INET, &c, &s);
	R(send(c, "last", 4, 0));
	R(shutdown(c, SHUT_RDWR));
	READY(c);
	R(recv(c, b, sizeof b, 0));
	R(send(c, "x", 1, MSG_NOSIGNAL));
	AWAIT(s, POLLRDHUP);
	READY(s);
	R(recv(s, b, sizeof b, MSG_WAITALL));
	R(recv(s, b, sizeof b, 0));
	close(s);
	/* until that has come here, which no event tells */
	for (int64_t end = conf_now() + 10000; getpeername(c, SA(at), &len) == 0 && conf_now() < end;)
		nap(5);
	READY(c);
	R(shutdown(c, SHUT_RDWR));
	WHERE(getpeername, c);
	close(c);
}

/* Data for who has shut both halves is answered with a reset; what had come
 * before can still be read. */
static void refuses(void)
{
	int c, s;

	pair(AF_INET, &c, &s);
	R(shutdown(s, SHUT_RDWR));
	AWAIT(c, POLLRDHUP);
	R(send(c, "x", 1, 0));
	AWAIT(c, POLLERR);
	AWAIT(s, POLLERR);
	READY(c);
	READY(s);
	R(send(c, "y", 1, MSG_NOSIGNAL));
	R(recv(c, b, sizeof b, 0));
	R(recv(c, b, sizeof b, 0));
	R(recv(s, b, sizeof b, 0));
	R(recv(s, b, sizeof b, 0));
	R(send(s, "x", 1, MSG_NOSIGNAL));
	R(shutdown(s, SHUT_RDWR));
	WHERE(getpeername, s);
	close(c);
	close(s);

	pair(AF_INET, &c, &s);
	R(send(c, "early", 5, 0));
	AWAIT(s, POLLIN);
	R(shutdown(s, SHUT_RDWR));
	AWAIT(c, POLLRDHUP);
	R(recv(s, b, 2, 0));
	R(send(c, "late", 4, 0));
	AWAIT(c, POLLERR);
	AWAIT(s, POLLERR);
	R(recv(s, b, sizeof b, 0));
	R(recv(s, b, sizeof b, 0));
	OPT(s, SOL_SOCKET, SO_ERROR);
	OPT(c, SOL_SOCKET, SO_ERROR);
	close(c);
	close(s);
}

/* The reading half alone goes on taking data, until the other is shut, too. */
static void refuses_later(void)
{
	int c, s;

	pair(AF_INET6, &c, &s);
	R(shutdown(s, SHUT_RD));
	R(send(c, "late", 4, 0));
	await_bytes(s, 4);
	R(recv(s, b, sizeof b, 0));
	R(recv(s, b, sizeof b, 0));
	R(send(c, "later", 5, 0));
	await_bytes(s, 5);
	R(shutdown(s, SHUT_WR));
	AWAIT(c, POLLRDHUP);
	R(recv(s, b, sizeof b, 0));
	R(send(c, "x", 1, 0));
	AWAIT(c, POLLERR);
	AWAIT(s, POLLERR);
	READY(s);
	R(recv(s, b, sizeof b, 0));
	close(c);
	close(s);
}

static void signals(void)
{
	struct iovec v = { b, 1 };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1 };
	int c, s;

	catch_signals(SIGPIPE);
	pair(AF_INET, &c, &s);
	R(shutdown(c, SHUT_WR));
	R(send(c, "x", 1, 0));
	show_signal();
	R(send(c, "x", 1, MSG_NOSIGNAL));
	show_signal();
	R(write(c, "x", 1));
	show_signal();
	R(writev(c, &v, 1));
	show_signal();
	R(sendmsg(c, &m, 0));
	show_signal();
	R(sendmsg(c, &m, MSG_NOSIGNAL));
	show_signal();
	R(sendto(c, "x", 1, 0, NULL, 0));
	show_signal();
	R(send(c, "", 0, 0));
	show_signal();
	close(c);
	close(s);
}

static void refused(void)
{
	struct sockaddr_storage at;
	int c, s, fd = socket(AF_INET, SOCK_STREAM, 0), l = listener(AF_INET, &at);

	R(shutdown(fd, SHUT_RD));
	R(shutdown(fd, SHUT_WR));
	R(shutdown(fd, SHUT_RDWR));
	READY(fd);
	R(shutdown(fd, 3));
	R(shutdown(fd, -1));
	R(shutdown(-1, SHUT_RD));
	R(shutdown(STDIN_FILENO, SHUT_RD));
	R(shutdown(l, 3));
	pair(AF_INET, &c, &s);
	R(shutdown(c, 3));
	R(shutdown(c, -1));
	close(c);
	close(s);
	R(shutdown(c, SHUT_RD));
	close(fd);
	close(l);
}

int main(void)
{
	SECTION("write half, IPv4");
	write_half(AF_INET);
	SECTION("write half, IPv6");
	write_half(AF_INET6);
	SECTION("read half");
	read_half();
	SECTION("both halves");
	both_halves();
	SECTION("data after both halves");
	refuses();
	SECTION("data after one half, and the other");
	refuses_later();
	SECTION("SIGPIPE");
	signals();
	SECTION("refused");
	refused();
	return 0;
}
