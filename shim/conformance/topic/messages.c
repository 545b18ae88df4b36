/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Sockets in messages (SCM_RIGHTS). One that nobody has but the message lives
 * on in it, with all that has come for it; who gets it finds its flags, time
 * limits and options, and both ends of the hand-over share them from then on.
 */
#include "conf.h"

#include <sys/epoll.h>

static int up[2]; /* to the parent, which receives; and back */

static void pass(int fd) { pass_fd(up[1], fd); }

static int take(void)
{
	int fd = take_fd(up[0]);

	need(fd >= 0, "recvmsg");
	return fd;
}

static void say(int end) { need(write(up[end], "x", 1) == 1, "write"); }

static void hear(int end)
{
	char b;

	need(read(up[end], &b, 1) == 1, "read");
}

enum sender { EXITS, CLOSES, KEEPS };
static const char *const senders[] = { "exits", "closes", "keeps" };

/* The end of a child that has sent a socket. */
static void sent(enum sender how, int fd)
{
	if (how == CLOSES)
		close(fd);
	say(1);
	if (how != EXITS)
		hear(1);
	fflush(stdout);
	_exit(0);
}

/* In the parent: the sender has done its part. */
static int received(enum sender how, pid_t pid)
{
	int fd;

	if (how == EXITS)
		waitpid(pid, NULL, 0);
	nap(how == KEEPS ? 0 : 50); /* nobody has it for a while */
	fd = FD(take());
	hear(0);
	return fd;
}

static void settled(enum sender how, pid_t pid)
{
	if (how == EXITS)
		return;
	say(0);
	waitpid(pid, NULL, 0);
}

static int datagram(struct sockaddr_storage *at)
{
	int d = socket(AF_INET, SOCK_DGRAM, 0);

	*at = loopback(AF_INET, 0);
	need(d >= 0 && bind(d, SA(*at), addr_len(at)) == 0, "bind");
	*at = bound_to(d);
	return d;
}

static char big[40000];

/* Some datagrams have come before, some come while it is in the message. */
static void datagrams(enum sender how)
{
	struct sockaddr_storage at, from;
	struct timeval t = { 5, 0 };
	static char b[sizeof big];
	int d, c;
	pid_t pid;

	c = datagram(&from);
	pid = fork();
	if (pid == 0) {
		d = datagram(&at);
		write_all(up[1], &at, sizeof at);
		hear(1);
		await_events(d, POLLIN);
		nap(20); /* all three */
		pass(d);
		sent(how, d);
	}
	read_all(up[0], &at, sizeof at);
	need(connect(c, SA(at), addr_len(&at)) == 0, "connect");
	R(send(c, "first", 5, 0));
	fill(big, sizeof big);
	R(send(c, big, sizeof big, 0));
	R(send(c, "third", 5, 0));
	say(0);
	d = received(how, pid);
	R(send(c, "late", 4, 0));
	R(setsockopt(d, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t));
	R(recv(d, b, sizeof b, 0));
	R(recv(d, b, sizeof b, 0));
	R(!memcmp(b, big, sizeof big));
	R(recv(d, b, sizeof b, 0));
	R(recv(d, b, sizeof b, 0));
	R(sendto(d, "answer", 6, 0, SA(from), addr_len(&from)) < 0 ? errno : 0);
	settled(how, pid);
	R(send(c, "after", 5, 0));
	R(recv(d, b, sizeof b, 0));
	close(d), close(c);
}

/* The sender is the one who receives, too. */
static void datagrams_back(void)
{
	struct sockaddr_storage at;
	int d = datagram(&at), c = socket(AF_INET, SOCK_DGRAM, 0), e;
	char b[8];

	need(connect(c, SA(at), addr_len(&at)) == 0, "connect");
	R(send(c, "one", 3, 0));
	pass(d);
	close(d);
	R(send(c, "two", 3, 0));
	e = FD(take());
	R(recv(e, b, 8, 0));
	R(recv(e, b, 8, 0));
	close(e), close(c);
}

static void dropped(void)
{
	struct sockaddr_storage at;
	int d = datagram(&at), s[2], rc = -1;

	need(socketpair(AF_UNIX, SOCK_STREAM, 0, s) == 0, "socketpair");
	int keep0 = up[0], keep1 = up[1];
	up[0] = s[0], up[1] = s[1];
	pass(d);
	close(d);
	close(s[0]), close(s[1]); /* the message is never read */
	up[0] = keep0, up[1] = keep1;
	d = socket(AF_INET, SOCK_DGRAM, 0);
	for (int i = 0; i < 500 && rc < 0; i++) { /* its address is free, soon */
		rc = bind(d, SA(at), addr_len(&at));
		if (rc < 0)
			nap(10);
	}
	R(rc);
	close(d);
}

/* Bound, and not yet a listener or a connection. */
static void bound(enum sender how, bool listens)
{
	struct sockaddr_storage at, to;
	int l = -1, c, s, other = listener(AF_INET, &to);
	char b[8];
	pid_t pid = fork();

	if (pid == 0) {
		l = socket(AF_INET, SOCK_STREAM, 0);
		at = loopback(AF_INET, 0);
		need(bind(l, SA(at), addr_len(&at)) == 0, "bind");
		at = bound_to(l);
		pass(l);
		sent(how, l);
	}
	l = received(how, pid);
	at = bound_to(l);
	R(ntohs(((struct sockaddr_in *)&at)->sin_port) > 0);
	c = socket(AF_INET, SOCK_STREAM, 0);
	R(bind(c, SA(at), addr_len(&at))); /* taken */
	if (listens) {
		R(listen(l, 5));
		R(connect(c, SA(at), addr_len(&at)));
		s = FD(accept(l, NULL, NULL));
	} else {
		R(connect(l, SA(to), addr_len(&to)));
		s = FD(accept(other, NULL, NULL));
		close(c);
		c = l, l = -1;
	}
	write_all(c, "hi", 2);
	R(recv(s, b, 8, 0));
	settled(how, pid);
	close(c), close(s), close(other);
	if (l >= 0)
		close(l);
}

/* About which nothing is decided. That it is the DPU's there shows in that it
 * reaches what is the DPU's. */
static void fresh(enum sender how, int type)
{
	struct sockaddr_storage at;
	struct timeval t = { 5, 0 };
	int l, fd, s = -1;
	char b[8];
	pid_t pid;

	l = type == SOCK_STREAM ? listener(AF_INET, &at) : datagram(&at);
	pid = fork();
	if (pid == 0) {
		fd = socket(AF_INET, type, 0);
		if (type == SOCK_STREAM)
			SETOPT(fd, IPPROTO_TCP, TCP_NODELAY, 1);
		R(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t));
		fflush(stdout);
		pass(fd);
		sent(how, fd);
	}
	fd = received(how, pid);
	R(connect(fd, SA(at), addr_len(&at)));
	if (type == SOCK_STREAM) {
		s = FD(accept(l, NULL, NULL));
		OPT(fd, IPPROTO_TCP, TCP_NODELAY);
	}
	R(send(fd, "fresh", 5, 0));
	R(recv(type == SOCK_STREAM ? s : l, b, 8, 0));
	settled(how, pid);
	close(fd), close(l);
	if (s >= 0)
		close(s);
}

/* A connection with its settings. */
static void connection(enum sender how)
{
	struct linger lin = { 1, 0 };
	struct timeval t = { 0, 120000 };
	int c, s, got;
	char b[16];
	pid_t pid;

	pair(AF_INET, &c, &s);
	pid = fork();
	if (pid == 0) {
		close(c);
		R(setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t));
		SETOPT(s, IPPROTO_TCP, TCP_NODELAY, 1);
		SETOPT(s, IPPROTO_TCP, TCP_KEEPIDLE, 66);
		SETOPT(s, SOL_SOCKET, SO_KEEPALIVE, 1);
		R(setsockopt(s, SOL_SOCKET, SO_LINGER, &lin, sizeof lin));
		await_bytes(s, 6);
		fflush(stdout);
		pass(s);
		sent(how, s);
	}
	close(s);
	write_all(c, "before", 6);
	got = received(how, pid);
	TIMED(0, 9000, recv(got, b, 16, 0));
	TIMED(100, 9000, recv(got, b, 16, 0));
	OPT(got, IPPROTO_TCP, TCP_NODELAY);
	OPT(got, IPPROTO_TCP, TCP_KEEPIDLE);
	OPT(got, SOL_SOCKET, SO_KEEPALIVE);
	SETOPT(got, IPPROTO_TCP, TCP_NODELAY, 0);
	OPT(got, IPPROTO_TCP, TCP_NODELAY);
	SETOPT(got, IPPROTO_TCP, TCP_KEEPIDLE, 0);
	SETOPT(got, IPPROTO_IP, IP_TOS, 0x10);
	OPT(got, IPPROTO_IP, IP_TOS);
	OPT(got, SOL_SOCKET, SO_TYPE);
	OPT(got, SOL_SOCKET, SO_DOMAIN);
	settled(how, pid);
	/* The last close resets it, whoever wanted that. */
	close(got);
	AWAIT(c, POLLIN);
	R(recv(c, b, 16, 0));
	close(c);
}

/* Who sends it and keeps it, and who gets it, have one file. */
static void shared(void)
{
	int c, s, got;
	char b[8];
	pid_t pid;

	pair(AF_INET, &c, &s);
	pid = fork();
	if (pid == 0) {
		int s2, c2;

		close(s), close(c);
		pair(AF_INET, &c2, &s2);
		pass(s2);
		say(1);
		hear(1);
		R(!!(fcntl(s2, F_GETFL) & O_NONBLOCK));
		R(recv(s2, b, 8, 0));
		R(shutdown(s2, SHUT_WR));
		R(fcntl(s2, F_SETFL, 0));
		fflush(stdout);
		say(1);
		hear(1);
		_exit(0);
	}
	close(c), close(s);
	got = FD(take());
	hear(0);
	R(fcntl(got, F_SETFL, O_NONBLOCK));
	fflush(stdout);
	say(0);
	hear(0);
	R(!!(fcntl(got, F_GETFL) & O_NONBLOCK));
	R(send(got, "x", 1, MSG_NOSIGNAL));
	say(0);
	waitpid(pid, NULL, 0);
	close(got);
}

int main(void)
{
	need(socketpair(AF_UNIX, SOCK_STREAM, 0, up) == 0, "socketpair");
	for (enum sender how = EXITS; how <= KEEPS; how++) {
		SECTION(senders[how]);
		datagrams(how);
		bound(how, true);
		bound(how, false);
		fresh(how, SOCK_STREAM);
		fresh(how, SOCK_DGRAM);
		connection(how);
	}
	SECTION("back to who sent it");
	datagrams_back();
	SECTION("never received");
	dropped();
	SECTION("shared");
	shared();
	return 0;
}
