/* SPDX-License-Identifier: Apache-2.0 */

/*
 * setsockopt and getsockopt.
 */
#include "player.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/time.h>

#define O(level, name, type) { #name, level, name, type }

static const struct option {
	const char *name;
	int level, option;
	enum { INT, LINGER, TIME } type;
} options[] = {
	O(SOL_SOCKET, SO_ERROR, INT),
	O(SOL_SOCKET, SO_TYPE, INT),
	O(SOL_SOCKET, SO_DOMAIN, INT),
	O(SOL_SOCKET, SO_PROTOCOL, INT),
	O(SOL_SOCKET, SO_ACCEPTCONN, INT),
	O(SOL_SOCKET, SO_REUSEADDR, INT),
	O(SOL_SOCKET, SO_REUSEPORT, INT),
	O(SOL_SOCKET, SO_KEEPALIVE, INT),
	O(SOL_SOCKET, SO_OOBINLINE, INT),
	O(SOL_SOCKET, SO_RCVLOWAT, INT),
	O(SOL_SOCKET, SO_SNDLOWAT, INT),
	O(SOL_SOCKET, SO_BROADCAST, INT),
	O(SOL_SOCKET, SO_PRIORITY, INT),
	O(SOL_SOCKET, SO_SNDBUF, INT),
	O(SOL_SOCKET, SO_RCVBUF, INT),
	O(SOL_SOCKET, SO_NO_CHECK, INT),
	O(SOL_SOCKET, SO_DEBUG, INT),
	O(SOL_SOCKET, SO_PASSCRED, INT),
	O(SOL_SOCKET, SO_INCOMING_CPU, INT),
	O(SOL_SOCKET, SO_BUSY_POLL, INT),
	O(SOL_SOCKET, SO_TXREHASH, INT),
	O(SOL_SOCKET, SO_DONTROUTE, INT),
	O(SOL_SOCKET, SO_TIMESTAMP, INT),
	O(SOL_SOCKET, SO_MARK, INT),
	O(SOL_SOCKET, SO_PEEK_OFF, INT),
	O(SOL_SOCKET, SO_ZEROCOPY, INT),
	O(IPPROTO_TCP, TCP_NODELAY, INT),
	O(IPPROTO_TCP, TCP_CORK, INT),
	O(IPPROTO_TCP, TCP_QUICKACK, INT),
	O(IPPROTO_TCP, TCP_KEEPIDLE, INT),
	O(IPPROTO_TCP, TCP_KEEPINTVL, INT),
	O(IPPROTO_TCP, TCP_KEEPCNT, INT),
	O(IPPROTO_TCP, TCP_USER_TIMEOUT, INT),
	O(IPPROTO_TCP, TCP_DEFER_ACCEPT, INT),
	O(IPPROTO_TCP, TCP_SYNCNT, INT),
	O(IPPROTO_TCP, TCP_LINGER2, INT),
	O(IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS, INT),
	O(IPPROTO_TCP, TCP_THIN_DUPACK, INT),
	O(IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, INT),
	O(IPPROTO_IP, IP_TOS, INT),
	O(IPPROTO_IP, IP_TTL, INT),
	O(IPPROTO_IP, IP_MTU_DISCOVER, INT),
	O(IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, INT),
	O(IPPROTO_IP, IP_PKTINFO, INT),
	O(IPPROTO_IP, IP_RECVTOS, INT),
	O(IPPROTO_IP, IP_RECVTTL, INT),
	O(IPPROTO_IP, IP_RECVOPTS, INT),
	O(IPPROTO_IP, IP_RETOPTS, INT),
	O(IPPROTO_IP, IP_MULTICAST_TTL, INT),
	O(IPPROTO_IP, IP_MULTICAST_LOOP, INT),
	O(IPPROTO_IP, IP_MULTICAST_ALL, INT),
	O(IPPROTO_IP, IP_FREEBIND, INT),
	O(IPPROTO_IP, IP_RECVERR, INT),
	O(IPPROTO_IPV6, IPV6_TCLASS, INT),
	O(IPPROTO_IPV6, IPV6_UNICAST_HOPS, INT),
	O(IPPROTO_IPV6, IPV6_MTU_DISCOVER, INT),
	O(IPPROTO_IPV6, IPV6_DONTFRAG, INT),
	O(IPPROTO_IPV6, IPV6_AUTOFLOWLABEL, INT),
	O(IPPROTO_IPV6, IPV6_RECVPKTINFO, INT),
	O(IPPROTO_IPV6, IPV6_RECVTCLASS, INT),
	O(IPPROTO_IPV6, IPV6_RECVHOPLIMIT, INT),
	O(IPPROTO_IPV6, IPV6_RECVPATHMTU, INT),
	O(IPPROTO_IPV6, IPV6_MULTICAST_HOPS, INT),
	O(IPPROTO_IPV6, IPV6_MULTICAST_LOOP, INT),
	O(IPPROTO_IPV6, IPV6_V6ONLY, INT),
	O(IPPROTO_IPV6, IPV6_RECVERR, INT),
	O(SOL_SOCKET, SO_LINGER, LINGER),
	O(SOL_SOCKET, SO_RCVTIMEO, TIME),
	O(SOL_SOCKET, SO_SNDTIMEO, TIME),
};

static const struct option *option(const char *name)
{
	for (size_t i = 0; i < sizeof options / sizeof options[0]; i++)
		if (!strcmp(options[i].name, name))
			return &options[i];
	return NULL;
}

static void do_setsockopt(const struct op *op)
{
	const struct option *o = option(op->word[2]);
	int v = number(op->word[3]);
	struct linger l = { .l_onoff = v >= 0, .l_linger = v >= 0 ? v : 0 };
	struct timeval t = { .tv_sec = v / 1000, .tv_usec = v % 1000 * 1000 };
	int fd = slot_fd(op->word[1]);

	if (!o)
		say(" no such option");
	else if (o->type == LINGER)
		say_rc(setsockopt(fd, o->level, o->option, &l, sizeof l));
	else if (o->type == TIME)
		say_rc(setsockopt(fd, o->level, o->option, &t, sizeof t));
	else
		say_rc(setsockopt(fd, o->level, o->option, &v, sizeof v));
}

static void do_getsockopt(const struct op *op)
{
	const struct option *o = option(op->word[2]);
	union {
		int v;
		struct linger l;
		struct timeval t;
	} u = { 0 };
	socklen_t len = sizeof u;
	int rc;

	if (!o)
		return;
	rc = getsockopt(slot_fd(op->word[1]), o->level, o->option, &u, &len);
	say_rc(rc);
	if (rc < 0)
		return;
	say(" len=%u", len);
	if (o->option == SO_ERROR && o->level == SOL_SOCKET)
		say(" %s", strerrorname_np(u.v));
	else if (o->type == LINGER)
		say(" %d/%d", u.l.l_onoff, u.l.l_linger);
	else if (o->type == TIME)
		say(" %ld.%06ld", (long)u.t.tv_sec, (long)u.t.tv_usec);
	else
		say(" %d", u.v);
}

/* tcpinfo S: the connection's state. */
static void do_tcpinfo(const struct op *op)
{
	struct tcp_info info = { 0 };
	socklen_t len = sizeof info;
	int rc = getsockopt(slot_fd(op->word[1]), IPPROTO_TCP, TCP_INFO, &info, &len);

	say_rc(rc);
	if (rc == 0)
		say(" state=%d", info.tcpi_state);
}

const struct call option_calls[] = {
	{ "setsockopt", 3, do_setsockopt },
	{ "getsockopt", 2, do_getsockopt },
	{ "tcpinfo", 1, do_tcpinfo },
	{ NULL, 0, NULL },
};
