/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Options: what is set is read back as the kernel would, on a socket that is
 * new, listening, connecting end and accepted end. What is refused there on
 * purpose has a topic of its own.
 */
#include "conf.h"

struct option {
	const char *name;
	int level, number;
	int values[4], n; /* to set one after the other */
	bool varies;      /* the default is not the same on two machines */
};

#define O(level, name, ...) \
	{ #name, level, name, { __VA_ARGS__ }, sizeof((int[]){ __VA_ARGS__ }) / sizeof(int), false }
#define V(level, name, ...) \
	{ #name, level, name, { __VA_ARGS__ }, sizeof((int[]){ __VA_ARGS__ }) / sizeof(int), true }

static const struct option common[] = {
	O(SOL_SOCKET, SO_REUSEADDR, 1, 0, 7),
	O(SOL_SOCKET, SO_REUSEPORT, 1, 0),
	O(SOL_SOCKET, SO_KEEPALIVE, 1, 5, 0),
	O(SOL_SOCKET, SO_BROADCAST, 1, 0),
	O(SOL_SOCKET, SO_OOBINLINE, 1, 0),
	O(SOL_SOCKET, SO_PRIORITY, 3, 0),
	V(SOL_SOCKET, SO_SNDBUF, 30000, 1, 0),
	V(SOL_SOCKET, SO_RCVBUF, 30000, 1, 0),
	O(SOL_SOCKET, SO_RCVLOWAT, 3, 0, 1),
	O(SOL_SOCKET, SO_SNDLOWAT, 2),
	O(SOL_SOCKET, SO_TYPE, 1),
	O(SOL_SOCKET, SO_ERROR, 1),
	O(SOL_SOCKET, SO_ACCEPTCONN, 1),
	O(SOL_SOCKET, SO_DOMAIN, 1),
	O(SOL_SOCKET, SO_PROTOCOL, 1),
	O(SOL_SOCKET, SO_PASSCRED, 1, 0),
	O(SOL_SOCKET, SO_NO_CHECK, 1, 0),
	O(SOL_SOCKET, 9999, 1),
	O(IPPROTO_TCP, TCP_NODELAY, 1, 0, 9),
	O(IPPROTO_TCP, TCP_CORK, 1, 0),
	O(IPPROTO_TCP, TCP_QUICKACK, 0, 1),
	O(IPPROTO_TCP, TCP_KEEPIDLE, 30, 0, 40000, 32767),
	O(IPPROTO_TCP, TCP_KEEPINTVL, 5, 0, 40000),
	O(IPPROTO_TCP, TCP_KEEPCNT, 3, 0, 200),
	O(IPPROTO_TCP, TCP_USER_TIMEOUT, 1234, -1, 0),
	O(IPPROTO_TCP, TCP_DEFER_ACCEPT, 1, 0, 9),
	O(IPPROTO_TCP, TCP_LINGER2, 5, -1, 100000),
	O(IPPROTO_TCP, TCP_SYNCNT, 2, 0, 300),
	O(IPPROTO_TCP, 9999, 1),
	O(IPPROTO_IP, IP_TOS, 0x10, 0xb8, 0x103, 0),
	O(IPPROTO_IP, IP_TTL, 9, 255, 256, 0),
	O(IPPROTO_IP, IP_RECVTOS, 1, 0),
	O(IPPROTO_IP, IP_RECVTTL, 1, 0),
	O(IPPROTO_IP, IP_PKTINFO, 1, 0),
	O(IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO, IP_PMTUDISC_DONT, 77),
	O(IPPROTO_IP, IP_FREEBIND, 1, 0),
	O(IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1, 0),
	O(IPPROTO_IP, 9999, 1),
};

static const struct option six[] = {
	O(IPPROTO_IPV6, IPV6_UNICAST_HOPS, 9, -1, 256),
	O(IPPROTO_IPV6, IPV6_TCLASS, 0x10, -1, 256),
	O(IPPROTO_IPV6, IPV6_RECVPKTINFO, 1, 0),
	O(IPPROTO_IPV6, IPV6_RECVTCLASS, 1, 0),
	O(IPPROTO_IPV6, 9999, 1),
};

static void each(int fd, const struct option *o, size_t n)
{
	for (; n-- > 0; o++) {
		if (!o->varies)
			conf_opt("fd", o->name, fd, o->level, o->number);
		for (int i = 0; i < o->n; i++) {
			char text[16];

			snprintf(text, sizeof text, "%d", o->values[i]);
			conf_setopt("fd", o->name, text, fd, o->level, o->number, o->values[i]);
			conf_opt("fd", o->name, fd, o->level, o->number);
		}
	}
}

#define ALL(fd, list) each(fd, list, sizeof list / sizeof list[0])

static void fresh(void)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0), fd6 = socket(AF_INET6, SOCK_STREAM, 0);

	ALL(fd, common);
	ALL(fd, six);
	close(fd);
	ALL(fd6, six);
	close(fd6);
}

static void listening(void)
{
	struct sockaddr_storage at;
	int l = listener(AF_INET, &at), l6 = listener(AF_INET6, &at);

	ALL(l, common);
	ALL(l6, six);
	close(l);
	close(l6);
}

static void connected(bool accepted)
{
	int c, s;

	pair(AF_INET, &c, &s);
	ALL(accepted ? s : c, common);
	close(c);
	close(s);
	pair(AF_INET6, &c, &s);
	ALL(accepted ? s : c, six);
	close(c);
	close(s);
}

/* Values of other sizes than int. */
static void sizes(int fd)
{
	long long wide = 0x100000001;
	struct linger l = { 1, 5 };
	char b[256], byte = 1;
	socklen_t len;

	R(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &wide, sizeof wide));
	OPT(fd, IPPROTO_TCP, TCP_NODELAY);
	R(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &byte, 1));
	R(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &byte, 0));
	R(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &wide, -1));
	R(setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &byte, 1));
	R(setsockopt(fd, IPPROTO_IP, IP_TOS, &byte, 1));
	OPT(fd, IPPROTO_IP, IP_TOS);
	R(setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, 4));
	R(setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof l));
	memset(b, '-', sizeof b);
	len = sizeof b;
	R(getsockopt(fd, SOL_SOCKET, SO_LINGER, b, &len));
	show("%u bytes, %d %d", len, ((struct linger *)b)->l_onoff, ((struct linger *)b)->l_linger);
	len = 3;
	R(getsockopt(fd, SOL_SOCKET, SO_LINGER, b, &len));
	show("%u bytes", len);
	l.l_onoff = 0;
	R(setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof l));
	len = 1;
	memset(b, '-', sizeof b);
	R(getsockopt(fd, IPPROTO_TCP, TCP_NODELAY, b, &len));
	show("%u bytes: %d, then %c", len, b[0], b[1]);
	len = 2;
	memset(b, '-', sizeof b);
	R(getsockopt(fd, SOL_SOCKET, SO_TYPE, b, &len));
	show("%u bytes: %d %d, then %c", len, b[0], b[1], b[2]);
	len = 0;
	R(getsockopt(fd, SOL_SOCKET, SO_TYPE, b, &len));
	show("%u bytes", len);
	len = sizeof b;
	R(getsockopt(fd, SOL_SOCKET, SO_TYPE, b, &len));
	show("%u bytes", len);
	len = 1;
	R(getsockopt(fd, IPPROTO_IP, IP_TTL, b, &len));
	show("%u bytes", len);
}

static void congestion(int fd)
{
	char name[32];
	socklen_t len = sizeof name;

	R(setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "reno", 4));
	memset(name, 0, sizeof name);
	R(getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, &len));
	show("%s, %u bytes", name, len);
	R(setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "cubic", 6));
	len = 3;
	memset(name, 0, sizeof name);
	R(getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, &len));
	show("%s, %u bytes", name, len);
	R(setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "nosuch", 6));
	R(setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "", 0));
	len = sizeof name;
	memset(name, 0, sizeof name);
	R(getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, &len));
	show("%s, %u bytes", name, len);
}

static void info(int fd)
{
	struct tcp_info i;
	socklen_t len = sizeof i;

	memset(&i, 0xff, sizeof i);
	R(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &i, &len));
	show("state %d, at least %d bytes", i.tcpi_state, len >= 104);
	len = 1;
	R(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &i, &len));
	show("%u bytes", len);
	R(setsockopt(fd, IPPROTO_TCP, TCP_INFO, &i, sizeof i));
}

static int segment(int fd)
{
	int v = -1;
	socklen_t len = sizeof v;

	getsockopt(fd, IPPROTO_TCP, TCP_MAXSEG, &v, &len);
	return v;
}

static void others(void)
{
	struct sockaddr_storage at;
	int fresh = socket(AF_INET, SOCK_STREAM, 0), l = listener(AF_INET, &at), c, s;

	pair(AF_INET, &c, &s);
	SECTION("sizes, new");
	sizes(fresh);
	SECTION("sizes, connected");
	sizes(c);
	SECTION("sizes, accepted");
	sizes(s);
	SECTION("TCP_CONGESTION");
	congestion(fresh);
	congestion(c);
	congestion(s);
	SECTION("TCP_INFO");
	info(fresh);
	info(l);
	info(c);
	info(s);
	SECTION("TCP_MAXSEG");
	for (int i = 0; i < 4; i++) {
		int fd = (int[]){ fresh, l, c, s }[i], before = segment(fd);

		SETOPT(fd, IPPROTO_TCP, TCP_MAXSEG, 0);
		SETOPT(fd, IPPROTO_TCP, TCP_MAXSEG, 1);
		SETOPT(fd, IPPROTO_TCP, TCP_MAXSEG, 1000);
		show("set: %d, as before: %d", segment(fd) == 1000, segment(fd) == before); /* that of a connection varies */
		SETOPT(fd, IPPROTO_TCP, TCP_MAXSEG, 0);
	}
	SECTION("TCP_WINDOW_CLAMP");
	OPT(fresh, IPPROTO_TCP, TCP_WINDOW_CLAMP);
	OPT(l, IPPROTO_TCP, TCP_WINDOW_CLAMP);
	OPT(c, IPPROTO_TCP, TCP_WINDOW_CLAMP);
	OPT(s, IPPROTO_TCP, TCP_WINDOW_CLAMP);
	SECTION("levels");
	OPT(c, 12345, 1);
	SETOPT(c, 12345, 1, 1);
	OPT(s, 12345, 1);
	SETOPT(s, 12345, 1, 1);
	OPT(c, IPPROTO_UDP, 1);
	OPT(s, IPPROTO_UDP, 1);
	OPT(s, IPPROTO_ICMP, 1);
	OPT(s, -1, 1);
	close(fresh);
	close(l);
	close(c);
	close(s);
}

/* What a cork keeps back goes out after a while. */
static void corked(void)
{
	char b[8];
	int c, s;

	pair(AF_INET, &c, &s);
	SETOPT(c, IPPROTO_TCP, TCP_CORK, 1);
	R(send(c, "kept", 4, 0));
	TIMED(0, 8000, recv(s, b, 4, MSG_WAITALL));
	R(send(c, "once", 4, 0));
	R(send(c, "more", 4, 0));
	TIMED(0, 8000, recv(s, b, 8, MSG_WAITALL));
	show_bytes("got", b, 8);
	R(send(c, "last", 4, 0));
	SETOPT(c, IPPROTO_TCP, TCP_CORK, 0);
	TIMED(0, 8000, recv(s, b, 4, MSG_WAITALL));
	SETOPT(c, IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, 1);
	OPT(c, IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE);
	close(c);
	close(s);
}

/* What was set before is in force after. */
static void kept(void)
{
	struct sockaddr_storage at;
	int l = listener(AF_INET, &at), c = socket(AF_INET, SOCK_STREAM, 0);

	SETOPT(c, IPPROTO_TCP, TCP_NODELAY, 1);
	SETOPT(c, SOL_SOCKET, SO_KEEPALIVE, 1);
	SETOPT(c, IPPROTO_TCP, TCP_KEEPIDLE, 44);
	SETOPT(c, SOL_SOCKET, SO_RCVBUF, 40000);
	SETOPT(c, IPPROTO_IP, IP_TOS, 0x20);
	SETOPT(c, IPPROTO_IP, IP_TTL, 77);
	R(connect(c, SA(at), sizeof(struct sockaddr_in)));
	OPT(c, IPPROTO_TCP, TCP_NODELAY);
	OPT(c, SOL_SOCKET, SO_KEEPALIVE);
	OPT(c, IPPROTO_TCP, TCP_KEEPIDLE);
	OPT(c, SOL_SOCKET, SO_RCVBUF);
	OPT(c, IPPROTO_IP, IP_TOS);
	OPT(c, IPPROTO_IP, IP_TTL);
	close(c);
	close(l);
}

int main(void)
{
	SECTION("new");
	fresh();
	SECTION("listening");
	listening();
	SECTION("connected");
	connected(false);
	SECTION("accepted");
	connected(true);
	others();
	SECTION("corked");
	corked();
	SECTION("kept over connect");
	kept();
	return 0;
}
