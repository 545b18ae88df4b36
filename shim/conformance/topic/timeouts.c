/* SPDX-License-Identifier: Apache-2.0 */

/*
 * SO_RCVTIMEO and SO_SNDTIMEO on every call that they are for.
 */
#include "conf.h"

#include <time.h>

static char b[1 << 16];

static struct timeval get(int fd, int name)
{
	struct timeval t = { -1, -1 };
	socklen_t len = sizeof t;

	getsockopt(fd, SOL_SOCKET, name, &t, &len);
	return t;
}

static void set(int fd, int name, long sec, long usec)
{
	struct timeval t = { sec, usec };

	R(setsockopt(fd, SOL_SOCKET, name, &t, sizeof t));
	t = get(fd, name);
	show("%ld.%06ld", (long)t.tv_sec, (long)t.tv_usec);
}

static void values(void)
{
	struct timeval t = { 1, 0 };
	int fd = socket(AF_INET, SOCK_STREAM, 0), c, s;

	set(fd, SO_RCVTIMEO, 0, 0);
	set(fd, SO_RCVTIMEO, 2, 500000);
	set(fd, SO_SNDTIMEO, 1, 4000);
	set(fd, SO_RCVTIMEO, 1, 1000000); /* not a time */
	set(fd, SO_RCVTIMEO, 1, -1);
	set(fd, SO_RCVTIMEO, -1, 0);
	set(fd, SO_RCVTIMEO, 0, 0);
	R(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, 4));
	R(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, 0));
	close(fd);
	pair(AF_INET, &c, &s);
	set(s, SO_RCVTIMEO, 2, 500000);
	set(s, SO_SNDTIMEO, 1, 4000);
	set(s, SO_RCVTIMEO, 1, 1000000);
	set(s, SO_RCVTIMEO, 1, -1);
	set(s, SO_RCVTIMEO, 0, 0);
	R(setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &t, 4));
	close(c);
	close(s);
}

static void receiving(void)
{
	struct iovec v = { b, 8 };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1 };
	int c, s;

	pair(AF_INET, &c, &s);
	set(s, SO_RCVTIMEO, 0, 100000);
	TIMED(90, 5000, recv(s, b, 8, 0));
	TIMED(90, 5000, read(s, b, 8));
	TIMED(90, 5000, readv(s, &v, 1));
	TIMED(90, 5000, recvmsg(s, &m, 0));
	TIMED(90, 5000, recv(s, b, 8, MSG_PEEK));
	set(s, SO_RCVTIMEO, 10, 0);
	TIMED(0, 5000, recv(s, b, 8, MSG_DONTWAIT));
	set(s, SO_RCVTIMEO, 1, 0); /* long enough for what is sent to come */
	R(send(c, "abc", 3, 0));
	TIMED(900, 5000, recv(s, b, 8, MSG_WAITALL)); /* what came in time */
	set(s, SO_RCVTIMEO, 10, 0);
	R(send(c, "abc", 3, 0));
	TIMED(0, 5000, recv(s, b, 8, 0));
	set(s, SO_RCVTIMEO, 0, 0);
	R(shutdown(c, SHUT_WR));
	R(recv(s, b, 8, 0));
	close(c);
	close(s);
}

/* A read of nothing waits like any other, and then says 0 whatever has come. */
static void nothing(void)
{
	int c, s;

	pair(AF_INET, &c, &s);
	R(recv(s, b, 0, MSG_DONTWAIT));
	R(read(s, b, 0));
	set(s, SO_RCVTIMEO, 0, 50000);
	TIMED(40, 5000, recv(s, b, 0, 0));
	TIMED(40, 5000, recv(s, b, 0, MSG_WAITALL));
	R(recv(s, b, 0, MSG_DONTWAIT));
	R(send(c, "abc", 3, 0));
	await_bytes(s, 3);
	R(recv(s, b, 0, 0));
	R(recv(s, b, 8, 0));
	R(recv(s, b, 8, 0));
	close(c);
	close(s);
}

static void accepting(void)
{
	struct sockaddr_storage at;
	int l = listener(AF_INET, &at), c, s;

	set(l, SO_RCVTIMEO, 0, 100000);
	TIMED(90, 5000, accept(l, NULL, NULL));
	c = dial(&at);
	s = FD(accept(l, NULL, NULL));
	TIMED(90, 5000, recv(s, b, 1, 0)); /* it is inherited */
	close(c);
	close(s);
	close(l);
}

/* How much goes before the time is over depends on buffers. */
static void sending(void)
{
	size_t sent = 0, got = 0;
	ssize_t n;
	int c, s;

	pair(AF_INET, &c, &s);
	set(c, SO_SNDTIMEO, 0, 100000);
	for (int quiet = 0; quiet < 4; quiet = n > 0 ? 0 : quiet + 1) {
		n = send(c, b, sizeof b, 0);
		sent += n > 0 ? n : 0;
	}
	TIMED(90, 5000, send(c, b, sizeof b, 0));
	TIMED(90, 5000, write(c, b, sizeof b));
	set(c, SO_SNDTIMEO, 10, 0);
	set(c, SO_RCVTIMEO, 10, 0);
	TIMED(0, 5000, send(c, b, sizeof b, MSG_DONTWAIT));
	TIMED(0, 5000, recv(c, b, 1, MSG_DONTWAIT));
	while (got < sent && (n = recv(s, b, sizeof b, 0)) > 0)
		got += n;
	R(got == sent);
	AWAIT(c, POLLOUT);
	R(send(c, b, 1, 0));
	close(c);
	close(s);
}

int main(void)
{
	SECTION("values");
	values();
	SECTION("receiving");
	receiving();
	SECTION("nothing");
	nothing();
	SECTION("accepting");
	accepting();
	SECTION("sending");
	sending();
	return 0;
}
