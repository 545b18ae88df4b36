/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Datagram sockets: names, connected and not, datagrams of all sizes, their
 * boundaries, and refusals.
 */
#include "conf.h"

#include <sys/epoll.h>

#define LEN sizeof(struct sockaddr_in)

static char b[70000];

static int bound(int family, struct sockaddr_storage *at)
{
	int fd = socket(family, SOCK_DGRAM, 0);

	*at = loopback(family, 0);
	need(fd >= 0 && bind(fd, SA(*at), addr_len(at)) == 0, "bind");
	*at = bound_to(fd);
	return fd;
}

static void names(int family)
{
	struct sockaddr_storage a = loopback(family, 0), at, other;
	int fd = FD(socket(family, SOCK_DGRAM, IPPROTO_UDP)), to = bound(family, &other), s;

	OPT(fd, SOL_SOCKET, SO_TYPE);
	OPT(fd, SOL_SOCKET, SO_DOMAIN);
	OPT(fd, SOL_SOCKET, SO_PROTOCOL);
	OPT(fd, SOL_SOCKET, SO_ACCEPTCONN);
	R(fcntl(fd, F_GETFL));
	WHERE(getsockname, fd);
	WHERE(getpeername, fd);
	READY(fd);
	R(bind(fd, SA(a), addr_len(&a)));
	WHERE(getsockname, fd);
	R(bind(fd, SA(a), addr_len(&a)));
	at = bound_to(fd);
	s = socket(family, SOCK_DGRAM, 0);
	R(bind(s, SA(at), addr_len(&at)));
	close(s);
	name_port(&at, "first");
	name_port(&other, "second");
	R(connect(fd, SA(other), addr_len(&other)));
	WHERE(getsockname, fd);
	WHERE(getpeername, fd);
	R(connect(fd, SA(at), addr_len(&at))); /* itself */
	WHERE(getpeername, fd);
	R(send(fd, "echo", 4, 0));
	await_events(fd, POLLIN);
	R(recv(fd, b, sizeof b, 0));
	R(connect(fd, &(struct sockaddr){ .sa_family = AF_UNSPEC }, sizeof(struct sockaddr)));
	WHERE(getsockname, fd);
	WHERE(getpeername, fd);
	close(fd);

	/* connect alone gives an address */
	fd = socket(family, SOCK_DGRAM, 0);
	R(connect(fd, SA(other), addr_len(&other)));
	WHERE(getsockname, fd);
	WHERE(getpeername, fd);
	R(connect(fd, &(struct sockaddr){ .sa_family = AF_UNSPEC }, sizeof(struct sockaddr)));
	WHERE(getpeername, fd);
	R(listen(fd, 1));
	FD(accept(fd, NULL, NULL));
	R(shutdown(fd, SHUT_RD));
	close(fd);
	close(to);
}

/* A send that names nobody fails, but the socket has a port then. */
static void sent_to_nobody(int family)
{
	struct sockaddr_storage a = loopback(family, 0), there, mine, from;
	int to = bound(family, &there), fd = socket(family, SOCK_DGRAM, 0);
	socklen_t len = sizeof from;

	R(send(fd, "x", 1, 0));
	mine = bound_to(fd);
	name_port(&mine, "mine");
	name_port(&there, "there");
	WHERE(getsockname, fd);
	R(bind(fd, SA(a), addr_len(&a)));
	R(sendto(fd, "y", 1, 0, SA(there), addr_len(&there)));
	WHERE(getsockname, fd);
	await_events(to, POLLIN);
	R(recvfrom(to, b, 1, 0, SA(from), &len));
	show_addr("from", &from, len);
	R(bind(fd, SA(a), addr_len(&a)));
	close(fd);

	fd = socket(family, SOCK_DGRAM, 0);
	R(write(fd, "x", 1));
	mine = bound_to(fd);
	name_port(&mine, "mine, too");
	R(connect(fd, SA(there), addr_len(&there)));
	WHERE(getsockname, fd);
	R(send(fd, "z", 1, 0));
	len = -1;
	await_events(to, POLLIN);
	R(recvfrom(to, b, 1, 0, SA(from), &len)); /* it is lost */
	R(recv(to, b, 1, MSG_DONTWAIT));
	R(connect(fd, &(struct sockaddr){ .sa_family = AF_UNSPEC }, sizeof(struct sockaddr)));
	R(bind(fd, SA(a), addr_len(&a)));
	close(fd);
	close(to);
}

static void strange_names(int family)
{
	struct sockaddr_storage at;
	struct sockaddr_un { sa_family_t family; char path[108]; } un = { AF_UNIX, "/nowhere" };
	struct sockaddr_storage none = { .ss_family = AF_UNSPEC };
	int to = bound(family, &at), fd = socket(family, SOCK_DGRAM, 0), bare = socket(family, SOCK_DGRAM, 0);

	R(connect(fd, SA(at), addr_len(&at)));
	for (int i = 0; i < 3; i++) {
		int s = (int[]){ bare, to, fd }[i];

		R(sendto(s, "x", 1, 0, SA(un), sizeof un));
		R(sendto(s, "x", 1, 0, SA(un), 2));
		R(sendto(s, "x", 1, 0, SA(un), 1));
		R(sendto(s, "x", 1, 0, SA(un), -1));
		R(sendto(s, "x", 1, 0, SA(un), 200));
		R(sendto(s, "x", 1, 0, SA(none), 1));
		R(sendto(s, "x", 1, 0, SA(none), 2));
		R(sendto(s, "x", 1, 0, SA(none), sizeof(struct sockaddr_in)));
		R(connect(s, SA(un), sizeof un));
		R(connect(s, SA(un), 1));
		R(bind(s, SA(un), sizeof un));
	}
	/* to IPv6, one of no family is none at all */
	for (int i = 0; family == AF_INET6 && i < 2; i++)
		R(recv(to, b, 10, 0));
	READY(to);
	close(bare);
	close(fd);
	close(to);
}

static void exchange(int family)
{
	struct sockaddr_storage from, a_at, b_at;
	socklen_t len = sizeof from;
	int a = bound(family, &a_at), s = bound(family, &b_at), n;

	name_port(&a_at, "a");
	name_port(&b_at, "b");
	R(send(a, "x", 1, 0));
	R(sendto(a, "one", 3, 0, SA(b_at), addr_len(&b_at)));
	R(sendto(a, "second", 6, 0, SA(b_at), addr_len(&b_at)));
	R(sendto(a, "", 0, 0, SA(b_at), addr_len(&b_at)));
	R(sendto(a, "4th", 3, 0, SA(b_at), addr_len(&b_at)));
	AWAIT(s, POLLIN);
	READY(s);
	R(ioctl(s, FIONREAD, &n));
	show("%d", n);
	R(recvfrom(s, b, sizeof b, MSG_PEEK, SA(from), &len));
	show_addr("from", &from, len);
	show_bytes("got", b, 3);
	len = sizeof from;
	R(recvfrom(s, b, sizeof b, 0, SA(from), &len));
	show_addr("from", &from, len);
	R(recv(s, b, 3, 0)); /* the rest is lost */
	show_bytes("got", b, 3);
	R(recv(s, b, sizeof b, 0));
	R(recv(s, b, 1, MSG_TRUNC));
	R(recv(s, b, 1, MSG_DONTWAIT));
	READY(s);
	len = 4;
	R(sendto(a, "five", 4, 0, SA(b_at), addr_len(&b_at)));
	await_events(s, POLLIN);
	R(recvfrom(s, b, 0, 0, SA(from), &len));
	show("length %u", len);
	R(sendto(a, "6", 1, 0, SA(b_at), addr_len(&b_at)));
	await_events(s, POLLIN);
	R(read(s, b, 0));
	R(read(s, b, 10));
	close(a);
	close(s);
}

static void connected(void)
{
	struct sockaddr_storage a_at, b_at, c_at;
	int a = bound(AF_INET, &a_at), s = bound(AF_INET, &b_at), other = bound(AF_INET, &c_at);
	struct iovec v[2] = { { "ab", 2 }, { "cde", 3 } };

	R(connect(a, SA(b_at), LEN));
	R(send(a, "x", 1, 0));
	R(write(a, "yz", 2));
	R(writev(a, v, 2));
	R(sendto(a, "w", 1, 0, NULL, 0));
	R(sendto(a, "other", 5, 0, SA(c_at), LEN)); /* may still name another */
	await_events(other, POLLIN);
	R(recv(other, b, sizeof b, 0));
	for (int i = 0; i < 4; i++) {
		await_events(s, POLLIN);
		R(recv(s, b, sizeof b, 0));
	}
	/* what comes from elsewhere is not delivered */
	R(sendto(other, "stray", 5, 0, SA(a_at), LEN));
	R(sendto(s, "right", 5, 0, SA(a_at), LEN));
	R(recv(a, b, sizeof b, 0));
	show_bytes("got", b, 5);
	R(recv(a, b, sizeof b, MSG_DONTWAIT));
	close(a);
	close(s);
	close(other);
}

static void refused(int family)
{
	struct sockaddr_storage at, other;
	int holder = bound(family, &at), c = socket(family, SOCK_DGRAM, 0);

	close(holder);
	R(connect(c, SA(at), addr_len(&at)));
	R(send(c, "x", 1, 0));
	AWAIT(c, POLLERR);
	READY(c);
	R(send(c, "x", 1, 0));
	READY(c);
	R(send(c, "x", 1, 0));
	AWAIT(c, POLLERR);
	R(recv(c, b, sizeof b, 0));
	R(recv(c, b, sizeof b, MSG_DONTWAIT));
	R(send(c, "x", 1, 0));
	AWAIT(c, POLLERR);
	OPT(c, SOL_SOCKET, SO_ERROR);
	OPT(c, SOL_SOCKET, SO_ERROR);
	close(c);
	/* each datagram is refused before the next one goes */
	c = bound(family, &other);
	R(connect(c, SA(at), addr_len(&at)));
	for (int i = 0; i < 5; i++)
		R(send(c, "x", 1, 0));
	READY(c);
	R(recv(c, b, sizeof b, MSG_DONTWAIT));
	R(recv(c, b, sizeof b, MSG_DONTWAIT));
	close(c);
	/* however many */
	c = socket(family, SOCK_DGRAM, 0);
	int errors = 0;

	R(connect(c, SA(at), addr_len(&at)));
	for (int i = 0; i < 200; i++) {
		send(c, "x", 1, 0);
		errors += recv(c, b, sizeof b, 0) < 0 && errno == ECONNREFUSED;
	}
	R(errors);
	close(c);
	/* one that is not connected is not told */
	c = socket(family, SOCK_DGRAM, 0);
	R(sendto(c, "x", 1, 0, SA(at), addr_len(&at)));
	nap(30);
	READY(c);
	R(recv(c, b, sizeof b, MSG_DONTWAIT));
	close(c);
}

/* MSG_MORE: several sends, one datagram */
static void corked(int family)
{
	struct sockaddr_storage to, elsewhere;
	int s = bound(family, &to), other = bound(family, &elsewhere), c = socket(family, SOCK_DGRAM, 0);
	struct iovec v[2] = { { "fg", 2 }, { "h", 1 } };
	int others = 0;

	fill(b, sizeof b);
	R(sendto(c, "abc", 3, MSG_MORE, SA(to), addr_len(&to)));
	R(sendto(c, "de", 2, MSG_MORE, SA(elsewhere), addr_len(&elsewhere)));
	nap(30);
	READY(s);
	R(sendto(c, "", 0, MSG_MORE, SA(to), addr_len(&to)));
	R(writev(c, v, 2)); /* names nobody, and goes where the first did */
	await_events(s, POLLIN);
	R(recv(s, b, sizeof b, 0));
	show_bytes("got", b, 8);
	READY(other);
	/* what is wrong drops all of it */
	R(sendto(c, b, 40000, MSG_MORE, SA(to), addr_len(&to)));
	R(sendto(c, b, 40000, MSG_MORE, SA(to), addr_len(&to)));
	R(sendto(c, "abc", 3, MSG_MORE, SA(to), addr_len(&to)));
	R(sendto(c, (void *)8, 4, 0, SA(to), addr_len(&to)));
	R(sendto(c, "x", 1, MSG_MORE, SA(to), addr_len(&to)));
	R(sendto(c, "y", 1, MSG_OOB, SA(to), addr_len(&to)));
	R(sendto(c, "z", 1, 0, SA(to), addr_len(&to)));
	await_events(s, POLLIN);
	R(recv(s, b, sizeof b, 0));
	R(connect(c, SA(to), addr_len(&to)));
	R(send(c, "one", 3, MSG_MORE));
	R(send(c, "", 0, 0));
	/* IPv6 knows no MSG_OOB: there is one datagram more */
	do
		await_events(s, POLLIN);
	while (R(recv(s, b, sizeof b, MSG_DONTWAIT)) != 3 && ++others < 3);
	R(send(c, "never sent", 10, MSG_MORE));
	close(c);
	nap(30);
	READY(s);
	close(other);
	close(s);
}

static void sizes(int family)
{
	static const size_t size[] = { 1, 1472, 1473, 9000, 65507, 65508, 65536 };
	struct sockaddr_storage at;
	int s = bound(family, &at), c = socket(family, SOCK_DGRAM, 0);
	static char back[70000];

	SETOPT(s, SOL_SOCKET, SO_RCVBUF, 400000);
	SETOPT(c, SOL_SOCKET, SO_SNDBUF, 400000);
	fill(b, sizeof b);
	R(connect(c, SA(at), addr_len(&at)));
	for (size_t i = 0; i < sizeof size / sizeof size[0]; i++) {
		if (family == AF_INET6 && size[i] == 65508)
			continue; /* no IPv4 header there */
		show("%zu bytes", size[i]);
		if (R(send(c, b, size[i], 0)) < 0)
			continue;
		await_events(s, POLLIN);
		R(recv(s, back, sizeof back, 0));
		show("the same: %d", !memcmp(b, back, size[i]));
	}
	close(c);
	close(s);
}

static void many(void)
{
	struct sockaddr_storage at, from[4];
	struct mmsghdr o[4] = { 0 }, m[4] = { 0 };
	struct iovec out[] = { { "a", 1 }, { "bb", 2 }, { "", 0 }, { "dddd", 4 } }, in[4];
	struct timespec second = { 1, 0 };
	int s = bound(AF_INET, &at), c = socket(AF_INET, SOCK_DGRAM, 0);

	for (int i = 0; i < 4; i++) {
		in[i] = (struct iovec){ b + 100 * i, 3 };
		o[i].msg_hdr = (struct msghdr){ .msg_iov = &out[i], .msg_iovlen = 1, .msg_name = &at, .msg_namelen = LEN };
		m[i].msg_hdr = (struct msghdr){ .msg_iov = &in[i], .msg_iovlen = 1, .msg_name = &from[i], .msg_namelen = sizeof from[i] };
	}
	R(sendmmsg(c, o, 4, 0));
	show("%u %u %u %u", o[0].msg_len, o[1].msg_len, o[2].msg_len, o[3].msg_len);
	nap(300); /* all of them are there then, which no event tells */
	R(recvmmsg(s, m, 4, MSG_WAITFORONE, &second));
	for (int i = 0; i < 4; i++)
		show("%u bytes, name %u, flags %#x", m[i].msg_len, m[i].msg_hdr.msg_namelen, m[i].msg_hdr.msg_flags);
	R(recvmmsg(s, m, 4, MSG_DONTWAIT, NULL));
	R(sendmmsg(c, o, 2, 0));
	nap(300); /* all of them are there then, which no event tells */
	R(recvmmsg(s, m, 4, MSG_DONTWAIT | MSG_TRUNC, NULL));
	close(c);
	close(s);
}

/* Who sends and never receives is not held up, nor by who does not read. */
/* The unspecified address is this host's. */
static void to_itself(int family)
{
	struct sockaddr_storage at, none;
	int s = bound(family, &at), a = socket(family, SOCK_DGRAM, 0);

	none = at;
	if (family == AF_INET)
		((struct sockaddr_in *)&none)->sin_addr.s_addr = INADDR_ANY;
	else
		((struct sockaddr_in6 *)&none)->sin6_addr = in6addr_any;
	R(sendto(a, "unconnected", 11, 0, SA(none), addr_len(&none)));
	AWAIT(s, POLLIN);
	R(recv(s, b, sizeof b, MSG_DONTWAIT));
	R(connect(a, SA(none), addr_len(&none)));
	R(send(a, "connected", 9, 0));
	AWAIT(s, POLLIN);
	R(recv(s, b, sizeof b, MSG_DONTWAIT));
	close(a);
	close(s);
}

static void only_sends(int family)
{
	struct sockaddr_storage at;
	int s = bound(family, &at), a = socket(family, SOCK_DGRAM, 0), whole = 0;

	R(connect(a, SA(at), addr_len(&at)));
	for (int i = 0; i < 1500; i++)
		whole += send(a, b, 1000, 0) == 1000;
	R(whole);
	close(a);
	a = socket(family, SOCK_DGRAM, 0);
	whole = 0;
	for (int i = 0; i < 1500; i++)
		whole += sendto(a, b, 1000, 0, SA(at), addr_len(&at)) == 1000;
	R(whole);
	R(recv(s, b, sizeof b, MSG_DONTWAIT));
	close(a);
	close(s);
}

static void readiness(void)
{
	struct epoll_event e = { .events = EPOLLIN | EPOLLET };
	struct sockaddr_storage at;
	int s = bound(AF_INET, &at), c = socket(AF_INET, SOCK_DGRAM, 0), ep = epoll_create1(0);

	R(epoll_ctl(ep, EPOLL_CTL_ADD, s, &e));
	R(epoll_wait(ep, &e, 1, 0));
	R(sendto(c, "1", 1, 0, SA(at), LEN));
	R(epoll_wait(ep, &e, 1, 2000));
	show_events("events", e.events);
	R(epoll_wait(ep, &e, 1, 30));
	R(sendto(c, "2", 1, 0, SA(at), LEN));
	R(epoll_wait(ep, &e, 1, 2000));
	R(recv(s, b, 10, 0));
	R(recv(s, b, 10, 0));
	R(epoll_wait(ep, &e, 1, 30));
	close(c);
	close(s);
	close(ep);
}

static void timeouts(void)
{
	struct timeval t = { 0, 100000 }, long_time = { 10, 0 };
	struct sockaddr_storage at;
	int s = bound(AF_INET, &at);

	R(setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t));
	TIMED(90, 5000, recv(s, b, 10, 0));
	R(setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &long_time, sizeof long_time));
	TIMED(0, 5000, recv(s, b, 10, MSG_DONTWAIT));
	R(fcntl(s, F_SETFL, O_NONBLOCK));
	TIMED(0, 5000, recv(s, b, 10, 0));
	close(s);
}

static void shut_down(void)
{
	struct sockaddr_storage at;
	int s = bound(AF_INET, &at), c = socket(AF_INET, SOCK_DGRAM, 0);

	R(connect(c, SA(at), LEN));
	R(shutdown(c, SHUT_WR));
	catch_signals(SIGPIPE);
	R(send(c, "x", 1, MSG_NOSIGNAL));
	R(send(c, "x", 1, 0));
	show_signal(); /* that is for streams */
	R(shutdown(c, SHUT_RD));
	R(recv(c, b, 10, 0));
	READY(c);
	R(shutdown(c, 5));
	close(c);
	close(s);
}

static void mistakes(void)
{
	struct sockaddr_storage at, six = loopback(AF_INET6, 53);
	int s = bound(AF_INET, &at), c = socket(AF_INET, SOCK_DGRAM, 0), n;
	socklen_t len = sizeof six;

	R(sendto(c, "x", 1, 0, SA(at), LEN - 1));
	R(sendto(c, "x", 1, 0, SA(six), sizeof(struct sockaddr_in6)));
	R(sendto(c, "x", 1, 0, (struct sockaddr *)8, LEN));
	R(sendto(c, (void *)8, 4, 0, SA(at), LEN));
	R(sendto(c, "x", 1, MSG_OOB, SA(at), LEN));
	R(recv(s, b, 1, MSG_OOB | MSG_DONTWAIT));
	R(sendto(c, "good", 4, 0, SA(at), LEN));
	await_events(s, POLLIN);
	R(recvfrom(s, b, 10, MSG_PEEK, (struct sockaddr *)8, &len));
	R(recv(s, (void *)8, 10, MSG_PEEK));
	R(recv(s, b, 10, 0));
	R(ioctl(s, FIONREAD, &n));
	show("%d", n);
	R(ioctl(s, TIOCOUTQ, &n));
	show("%d", n);
	R(ioctl(s, SIOCATMARK, &n));
	((struct sockaddr_in *)&at)->sin_port = 0;
	R(sendto(c, "x", 1, 0, SA(at), LEN));
	R(connect(c, SA(at), LEN));
	R(connect(c, SA(at), 3));
	close(c);
	close(s);
}

int main(void)
{
	SECTION("names, IPv4");
	names(AF_INET);
	SECTION("names, IPv6");
	names(AF_INET6);
	SECTION("sent to nobody, IPv4");
	sent_to_nobody(AF_INET);
	SECTION("sent to nobody, IPv6");
	sent_to_nobody(AF_INET6);
	SECTION("strange names, IPv4");
	strange_names(AF_INET);
	SECTION("strange names, IPv6");
	strange_names(AF_INET6);
	SECTION("exchange, IPv4");
	exchange(AF_INET);
	SECTION("exchange, IPv6");
	exchange(AF_INET6);
	SECTION("connected");
	connected();
	SECTION("refused, IPv4");
	refused(AF_INET);
	SECTION("refused, IPv6");
	refused(AF_INET6);
	SECTION("corked, IPv4");
	corked(AF_INET);
	SECTION("corked, IPv6");
	corked(AF_INET6);
	SECTION("sizes, IPv4");
	sizes(AF_INET);
	SECTION("sizes, IPv6");
	sizes(AF_INET6);
	SECTION("only sends, IPv4");
	only_sends(AF_INET);
	SECTION("only sends, IPv6");
	only_sends(AF_INET6);
	SECTION("to itself, IPv4");
	to_itself(AF_INET);
	SECTION("to itself, IPv6");
	to_itself(AF_INET6);
	SECTION("sendmmsg and recvmmsg");
	many();
	SECTION("readiness");
	readiness();
	SECTION("timeouts");
	timeouts();
	SECTION("shutdown");
	shut_down();
	SECTION("mistakes");
	mistakes();
	return 0;
}
