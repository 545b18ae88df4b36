/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Options that nobody acts on behind an offloaded socket: the kernel takes
 * them, the offload says so. Each line has its entry in known_test.go, and its
 * row in docs/compat.md. Their defaults are the same.
 */
#include "conf.h"

static void stream(void)
{
	int c, s;

	pair(AF_INET, &c, &s);
	OPT(c, SOL_SOCKET, SO_DONTROUTE);
	OPT(c, SOL_SOCKET, SO_TIMESTAMP);
	OPT(c, SOL_SOCKET, SO_ZEROCOPY);
	OPT(c, IPPROTO_TCP, TCP_INQ);
	OPT(c, IPPROTO_IP, IP_RECVERR);
	OPT(c, IPPROTO_IP, IP_MINTTL);
	SETOPT(c, SOL_SOCKET, SO_DONTROUTE, 1);
	SETOPT(c, SOL_SOCKET, SO_TIMESTAMP, 1);
	SETOPT(c, SOL_SOCKET, SO_ZEROCOPY, 1);
	SETOPT(c, SOL_SOCKET, SO_MAX_PACING_RATE, 1 << 30);
	SETOPT(c, IPPROTO_TCP, TCP_NOTSENT_LOWAT, 16384);
	SETOPT(c, IPPROTO_TCP, TCP_WINDOW_CLAMP, 65536);
	SETOPT(c, IPPROTO_TCP, TCP_INQ, 1);
	SETOPT(c, IPPROTO_IP, IP_RECVERR, 1);
	SETOPT(c, IPPROTO_IP, IP_MINTTL, 1);
	close(c);
	close(s);
	pair(AF_INET6, &c, &s);
	OPT(c, IPPROTO_IPV6, IPV6_RECVERR);
	SETOPT(c, IPPROTO_IPV6, IPV6_RECVERR, 1);
	close(c);
	close(s);
}

static void listening(void)
{
	struct sockaddr_storage at;
	int l = listener(AF_INET, &at);

	SETOPT(l, IPPROTO_TCP, TCP_FASTOPEN, 5);
	SETOPT(l, IPPROTO_TCP, TCP_SAVE_SYN, 1);
	close(l);
}

static void datagrams(void)
{
	struct sockaddr_storage at = loopback(AF_INET, 0);
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	need(bind(fd, SA(at), sizeof(struct sockaddr_in)) == 0, "bind");
	SETOPT(fd, SOL_SOCKET, SO_DONTROUTE, 1);
	SETOPT(fd, SOL_SOCKET, SO_TIMESTAMP, 1);
	SETOPT(fd, SOL_SOCKET, SO_RXQ_OVFL, 1);
	SETOPT(fd, IPPROTO_IP, IP_RECVERR, 1);
	SETOPT(fd, IPPROTO_IP, IP_RECVORIGDSTADDR, 1);
	close(fd);
}

int main(void)
{
	SECTION("connections");
	stream();
	SECTION("listeners");
	listening();
	SECTION("datagrams");
	datagrams();
	return 0;
}
