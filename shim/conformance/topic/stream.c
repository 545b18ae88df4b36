/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A stream's bytes: send and recv with their flags, and what they say when
 * there is nothing, too much, or no more.
 */
#include "conf.h"

static char b[1 << 20];

static void simple(int family)
{
	int c, s;

	pair(family, &c, &s);
	R(send(c, "hello", 5, 0));
	R(recv(s, b, 2, 0));
	show_bytes("got", b, 2);
	R(recv(s, b, 3, 0));
	show_bytes("got", b, 3);
	R(write(s, "world", 5));
	R(read(c, b, 5));
	show_bytes("got", b, 5);
	R(send(c, "", 0, 0));
	R(write(c, "", 0));
	R(send(c, "a", 1, 0));
	R(send(c, "b", 1, 0));
	await_bytes(s, 2);
	R(recv(s, b, 10, 0));
	show_bytes("got", b, 2);
	R(recv(s, b, 0, MSG_DONTWAIT));
	R(recv(s, b, 10, MSG_DONTWAIT));
	close(c);
	close(s);
}

static void peek(void)
{
	int c, s;

	pair(AF_INET, &c, &s);
	R(recv(s, b, 4, MSG_PEEK | MSG_DONTWAIT));
	R(send(c, "abcdef", 6, 0));
	await_bytes(s, 6);
	R(recv(s, b, 4, MSG_PEEK));
	show_bytes("got", b, 4);
	R(recv(s, b, 10, MSG_PEEK));
	show_bytes("got", b, 6);
	R(recv(s, b, 2, 0));
	show_bytes("got", b, 2);
	R(recv(s, b, 10, MSG_PEEK | MSG_DONTWAIT));
	show_bytes("got", b, 4);
	R(send(c, "gh", 2, 0));
	R(recv(s, b, 6, MSG_PEEK | MSG_WAITALL));
	show_bytes("got", b, 6);
	R(shutdown(c, SHUT_WR));
	R(recv(s, b, 10, MSG_PEEK | MSG_WAITALL));
	R(recv(s, b, 10, MSG_WAITALL));
	R(recv(s, b, 10, MSG_PEEK));
	R(recv(s, b, 10, MSG_PEEK | MSG_DONTWAIT));
	close(c);
	close(s);
}

static void dontwait(void)
{
	int c, s;

	pair(AF_INET, &c, &s);
	R(recv(s, b, 10, MSG_DONTWAIT));
	R(fcntl(s, F_SETFL, O_NONBLOCK));
	R(recv(s, b, 10, 0));
	R(read(s, b, 10));
	R(recv(s, b, 10, MSG_WAITALL));
	R(send(c, "abc", 3, 0));
	AWAIT(s, POLLIN);
	R(recv(s, b, 10, MSG_WAITALL));
	R(recv(s, b, 10, MSG_WAITALL | MSG_DONTWAIT));
	R(fcntl(s, F_SETFL, 0));
	R(recv(s, b, 10, MSG_DONTWAIT));
	R(send(c, "abc", 3, 0));
	R(recv(s, b, 10, 0));
	close(c);
	close(s);
}

/* A child gives the rest a while later. */
static void waitall(void)
{
	int c, s;

	pair(AF_INET, &c, &s);
	if (fork() == 0) {
		nap(50);
		write_all(c, "abc", 3);
		nap(50);
		write_all(c, "def", 3);
		nap(50);
		write_all(c, "gh", 2);
		_exit(0);
	}
	close(c);
	TIMED(80, 4000, recv(s, b, 6, MSG_WAITALL));
	show_bytes("got", b, 6);
	R(recv(s, b, 6, MSG_WAITALL)); /* cut short by the end */
	show_bytes("got", b, 2);
	R(recv(s, b, 6, MSG_WAITALL));
	wait(NULL);
	close(s);
}

/* On a stream, MSG_TRUNC reads without storing. */
static void discard(void)
{
	int c, s;

	pair(AF_INET, &c, &s);
	R(send(c, "abcdef", 6, 0));
	await_bytes(s, 6);
	memset(b, '-', 8);
	R(recv(s, b, 4, MSG_TRUNC));
	show_bytes("buffer", b, 4);
	R(recv(s, NULL, 1, MSG_TRUNC));
	R(recv(s, b, 4, MSG_TRUNC | MSG_PEEK));
	show_bytes("buffer", b, 4);
	R(recv(s, b, 4, 0));
	show_bytes("buffer", b, 4);
	R(recv(s, b, 4, MSG_TRUNC | MSG_DONTWAIT));
	close(c);
	close(s);
}

static void other_flags(void)
{
	int c, s;

	pair(AF_INET, &c, &s);
	R(send(c, "a", 1, MSG_MORE));
	R(send(c, "b", 1, MSG_MORE));
	R(send(c, "c", 1, 0));
	R(recv(s, b, 3, MSG_WAITALL));
	show_bytes("got", b, 3);
	R(send(c, "d", 1, MSG_DONTROUTE));
	R(send(c, "e", 1, MSG_CONFIRM));
	R(send(c, "f", 1, MSG_EOR));
	R(send(c, "g", 1, MSG_NOSIGNAL | MSG_DONTWAIT));
	R(recv(s, b, 4, MSG_WAITALL));
	show_bytes("got", b, 4);
	R(send(c, "h", 1, 0));
	R(recv(s, b, 1, MSG_CMSG_CLOEXEC));
	R(recv(s, b, 1, MSG_ERRQUEUE));
	R(recv(s, b, 1, MSG_ERRQUEUE | MSG_DONTWAIT));
	close(c);
	close(s);
}

static void addressed(void)
{
	struct sockaddr_storage at = loopback(AF_INET, 9), from;
	socklen_t len = sizeof from;
	int c, s;

	pair(AF_INET, &c, &s);
	R(sendto(c, "abc", 3, 0, SA(at), sizeof(struct sockaddr_in)));
	R(sendto(c, "abc", 3, 0, NULL, 0));
	await_bytes(s, 6);
	R(recvfrom(s, b, 3, 0, SA(from), &len));
	show("length %u", len);
	len = 1;
	R(recvfrom(s, b, 3, 0, NULL, &len));
	show("length %u", len);
	len = 7;
	R(recvfrom(s, b, 3, MSG_DONTWAIT, SA(from), &len));
	show("length %u", len);
	R(recvfrom(s, b, 3, MSG_DONTWAIT, NULL, NULL));
	/* a length that is wrong is noticed when the data has been taken */
	R(send(c, "abcdef", 6, 0));
	await_bytes(s, 6);
	len = -1;
	R(recvfrom(s, b, 1, 0, NULL, &len));
	R(recvfrom(s, b, 1, 0, SA(from), &len));
	show("length %d", (int)len);
	R(recvfrom(s, b, 6, 0, NULL, NULL));
	show_bytes("got", b, 4);
	R(recvfrom(s, b, 6, MSG_DONTWAIT, SA(from), &len));
	close(c);
	close(s);
	c = socket(AF_INET, SOCK_STREAM, 0);
	R(sendto(c, "abc", 3, MSG_NOSIGNAL, SA(at), sizeof(struct sockaddr_in)));
	R(send(c, "abc", 3, MSG_NOSIGNAL));
	catch_signals(SIGPIPE);
	R(write(c, "", 0));
	show_signal();
	R(recv(c, b, 3, 0));
	R(recv(c, b, 0, 0));
	R(read(c, b, 0));
	close(c);
}

/* As much as goes, and then EAGAIN; what was taken arrives. How much that is
 * depends on buffers and is not compared. */
static void full(int family)
{
	static char more[1 << 20];
	size_t sent = 0, got = 0;
	ssize_t n;
	bool same = true;
	int c, s;

	pair(family, &c, &s);
	fill(more, sizeof more);
	fcntl(c, F_SETFL, O_NONBLOCK);
	for (int quiet = 0; quiet < 20;) {
		n = send(c, more + sent % sizeof more, sizeof more - sent % sizeof more, 0);
		if (n > 0)
			sent += n;
		quiet = n > 0 ? 0 : quiet + 1;
		if (n < 0)
			nap(5);
	}
	show("some went: %d", sent > 1000);
	R(send(c, "x", 1, 0));
	READY(c);
	while (got < sent) {
		n = recv(s, b, sizeof b, 0);
		need(n > 0, "recv");
		for (ssize_t i = 0; i < n; i++)
			same &= b[i] == more[(got + i) % sizeof more];
		got += n;
	}
	show("all came: %d, unchanged: %d", got == sent, same);
	AWAIT(c, POLLOUT);
	R(send(c, "x", 1, 0));
	R(recv(s, b, 10, 0));
	close(c);
	close(s);
}

/* A blocking send takes all, though nobody reads for a while. */
static void large(int family)
{
	static char all[4 << 20], back[4 << 20];
	int c, s;

	pair(family, &c, &s);
	fill(all, sizeof all);
	if (fork() == 0) {
		close(c);
		nap(100);
		read_all(s, back, sizeof back);
		write_all(s, back, sizeof back);
		_exit(0);
	}
	close(s);
	R(send(c, all, sizeof all, 0));
	R(recv(c, back, sizeof back, MSG_WAITALL));
	show_bytes("back", back, sizeof back);
	show("the same: %d", !memcmp(all, back, sizeof all));
	wait(NULL);
	R(recv(c, back, sizeof back, MSG_WAITALL));
	close(c);
}

/* Writes of all sizes, an end: nothing keeps them waiting for a clock. (A loaded
 * machine may hold up some of the streams, but not most.) */
static void no_stall(void)
{
	enum { STREAMS = 20, STALL_MS = 150 };
	struct sockaddr_storage at;
	int l = listener(AF_INET, &at), stalled = 0;
	static char b[4096];
	pid_t pid = fork();

	if (pid == 0) {
		for (int i = 0; i < STREAMS; i++) {
			int s = accept(l, NULL, NULL);

			for (size_t n = 16; n < sizeof b; n += 16)
				write_all(s, b, n);
			close(s);
		}
		_exit(0);
	}
	for (int i = 0; i < STREAMS; i++) {
		int64_t began = conf_now();
		int c = dial(&at);

		while (recv(c, b, sizeof b, 0) > 0)
			;
		stalled += conf_now() - began > STALL_MS;
		close(c);
	}
	need(waitpid(pid, NULL, 0) == pid, "waitpid");
	R(stalled > STREAMS / 2);
	close(l);
}

/* What came after poll has spoken is there as well. (A loaded machine may be late
 * with it, but not always.) */
static void all_of_it(void)
{
	int c, s, all = 0;
	char b[16];

	for (int i = 0; i < 20 && !all; i++) {
		struct pollfd p;

		pair(AF_INET, &c, &s);
		p = (struct pollfd){ .fd = s, .events = POLLIN };
		write_all(c, "one ", 4);
		need(poll(&p, 1, -1) == 1, "poll");
		write_all(c, "two ", 4);
		usleep(50000);
		all = recv(s, b, sizeof b, 0) == 8;
		close(c), close(s);
	}
	R(all);
}

int main(void)
{
	SECTION("send and recv, IPv4");
	simple(AF_INET);
	SECTION("send and recv, IPv6");
	simple(AF_INET6);
	SECTION("MSG_PEEK");
	peek();
	SECTION("MSG_DONTWAIT, O_NONBLOCK");
	dontwait();
	SECTION("MSG_WAITALL");
	waitall();
	SECTION("MSG_TRUNC");
	discard();
	SECTION("other flags");
	other_flags();
	SECTION("with addresses");
	addressed();
	SECTION("full, IPv4");
	full(AF_INET);
	SECTION("full, IPv6");
	full(AF_INET6);
	SECTION("two writes, one read");
	all_of_it();
	SECTION("4 MiB there and back");
	large(AF_INET);
	SECTION("small writes");
	no_stall();
	return 0;
}
