/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What comes with a datagram: its destination, its traffic class, its hop
 * limit; and choosing the source.
 */
#include "conf.h"

#define LEN sizeof(struct sockaddr_in)

static char data[64];

static int bound(struct sockaddr_storage *at)
{
	int fd = socket(at->ss_family, SOCK_DGRAM, 0);

	need(fd >= 0 && bind(fd, SA(*at), addr_len(at)) == 0, "bind");
	*at = bound_to(fd);
	return fd;
}

static void show_control(struct msghdr *m)
{
	char text[INET6_ADDRSTRLEN];

	show("control %zu bytes, flags %#x", (size_t)m->msg_controllen, m->msg_flags);
	for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
		if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO) {
			struct in_pktinfo *i = (void *)CMSG_DATA(c);

			inet_ntop(AF_INET, &i->ipi_addr, text, sizeof text);
			show("IP_PKTINFO to %s, %zu bytes", text, (size_t)c->cmsg_len);
			inet_ntop(AF_INET, &i->ipi_spec_dst, text, sizeof text);
			show("IP_PKTINFO answer from %s", text);
		} else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO) {
			struct in6_pktinfo *i = (void *)CMSG_DATA(c);

			inet_ntop(AF_INET6, &i->ipi6_addr, text, sizeof text);
			show("IPV6_PKTINFO to %s, %zu bytes", text, (size_t)c->cmsg_len);
		} else if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_TOS) {
			show("IP_TOS %#x, %zu bytes", *(uint8_t *)CMSG_DATA(c), (size_t)c->cmsg_len);
		} else {
			show("level %d type %d: %d, %zu bytes", c->cmsg_level, c->cmsg_type, *(int *)CMSG_DATA(c), (size_t)c->cmsg_len);
		}
	}
}

static void receive(int fd, size_t room)
{
	char control[256];
	struct sockaddr_storage from;
	struct iovec v = { data, sizeof data };
	struct msghdr m = { .msg_name = &from, .msg_namelen = sizeof from, .msg_iov = &v, .msg_iovlen = 1,
			    .msg_control = control, .msg_controllen = room };

	await_events(fd, POLLIN);
	R(recvmsg(fd, &m, 0));
	show_addr("from", &from, m.msg_namelen);
	show_control(&m);
}

static void four(void)
{
	struct sockaddr_storage any = { .ss_family = AF_INET }, from = loopback(AF_INET, 0), to;
	int s = bound(&any), c = bound(&from);

	name_port(&from, "client");
	to = loopback(AF_INET, ntohs(((struct sockaddr_in *)&any)->sin_port));
	SETOPT(s, IPPROTO_IP, IP_PKTINFO, 1);
	OPT(s, IPPROTO_IP, IP_PKTINFO);
	R(sendto(c, "x", 1, 0, SA(to), LEN));
	receive(s, 256);
	SETOPT(s, IPPROTO_IP, IP_RECVTOS, 1);
	SETOPT(s, IPPROTO_IP, IP_RECVTTL, 1);
	SETOPT(c, IPPROTO_IP, IP_TOS, 0x28);
	SETOPT(c, IPPROTO_IP, IP_TTL, 9);
	R(sendto(c, "x", 1, 0, SA(to), LEN));
	receive(s, 256);
	R(sendto(c, "x", 1, 0, SA(to), LEN));
	receive(s, 30); /* too little room */
	R(sendto(c, "x", 1, 0, SA(to), LEN));
	receive(s, 0);
	/* another address of this machine */
	((struct sockaddr_in *)&to)->sin_addr.s_addr = htonl(0x7f000205);
	R(sendto(c, "x", 1, 0, SA(to), LEN));
	receive(s, 256);
	SETOPT(s, IPPROTO_IP, IP_PKTINFO, 0);
	SETOPT(s, IPPROTO_IP, IP_RECVTTL, 0);
	R(sendto(c, "x", 1, 0, SA(to), LEN));
	receive(s, 256);
	close(c);
	close(s);
}

static void six(void)
{
	struct sockaddr_storage any = { .ss_family = AF_INET6 }, from = loopback(AF_INET6, 0), to;
	int s = bound(&any), c = bound(&from);

	name_port(&from, "client");
	to = loopback(AF_INET6, ntohs(((struct sockaddr_in6 *)&any)->sin6_port));
	SETOPT(s, IPPROTO_IPV6, IPV6_RECVPKTINFO, 1);
	SETOPT(s, IPPROTO_IPV6, IPV6_RECVTCLASS, 1);
	SETOPT(s, IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1);
	SETOPT(c, IPPROTO_IPV6, IPV6_TCLASS, 0x28);
	SETOPT(c, IPPROTO_IPV6, IPV6_UNICAST_HOPS, 9);
	R(sendto(c, "x", 1, 0, SA(to), addr_len(&to)));
	receive(s, 256);
	close(c);
	close(s);
}

/* A resolver answers from the address that was asked. */
static void source(void)
{
	union {
		char bytes[CMSG_SPACE(sizeof(struct in_pktinfo))];
		struct cmsghdr head;
	} control = { 0 };
	struct sockaddr_storage any = { .ss_family = AF_INET }, at = loopback(AF_INET, 0);
	struct iovec v = { "from elsewhere", 14 };
	struct in_pktinfo i = { .ipi_spec_dst.s_addr = htonl(0x7f000307) };
	int s = bound(&any), c = bound(&at);
	struct msghdr m = { .msg_name = &at, .msg_namelen = LEN, .msg_iov = &v, .msg_iovlen = 1,
			    .msg_control = control.bytes, .msg_controllen = sizeof control.bytes };

	name_port(&any, "server");
	control.head.cmsg_level = IPPROTO_IP;
	control.head.cmsg_type = IP_PKTINFO;
	control.head.cmsg_len = CMSG_LEN(sizeof i);
	memcpy(CMSG_DATA(&control.head), &i, sizeof i);
	R(sendmsg(s, &m, 0));
	receive(c, 0);
	control.head.cmsg_len = 3;
	R(sendmsg(s, &m, 0));
	control.head.cmsg_len = CMSG_LEN(1);
	R(sendmsg(s, &m, 0));
	control.head.cmsg_len = CMSG_LEN(sizeof i);
	control.head.cmsg_type = 99;
	R(sendmsg(s, &m, 0));
	control.head.cmsg_level = SOL_SOCKET;
	R(sendmsg(s, &m, 0));
	/* an address that is not ours */
	control.head.cmsg_level = IPPROTO_IP;
	control.head.cmsg_type = IP_PKTINFO;
	i.ipi_spec_dst.s_addr = htonl(0xc0000201);
	memcpy(CMSG_DATA(&control.head), &i, sizeof i);
	R(sendmsg(s, &m, 0));
	close(c);
	close(s);
}

static void class_for_one(void)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr head;
	} control = { 0 };
	struct sockaddr_storage at = loopback(AF_INET, 0);
	struct iovec v = { "x", 1 };
	int s = bound(&at), c = socket(AF_INET, SOCK_DGRAM, 0), tos = 0x10;
	struct sockaddr_storage from = loopback(AF_INET, 0);
	struct msghdr m = { .msg_name = &at, .msg_namelen = LEN, .msg_iov = &v, .msg_iovlen = 1,
			    .msg_control = control.bytes, .msg_controllen = sizeof control.bytes };

	R(bind(c, SA(from), LEN));
	from = bound_to(c);
	name_port(&from, "client");
	SETOPT(s, IPPROTO_IP, IP_RECVTOS, 1);
	control.head.cmsg_level = IPPROTO_IP;
	control.head.cmsg_type = IP_TOS;
	control.head.cmsg_len = CMSG_LEN(sizeof tos);
	memcpy(CMSG_DATA(&control.head), &tos, sizeof tos);
	R(sendmsg(c, &m, 0));
	receive(s, 256);
	R(sendto(c, "x", 1, 0, SA(at), LEN));
	receive(s, 256);
	close(c);
	close(s);
}

/* IPv4 datagrams on an IPv6 socket. */
static void mapped(void)
{
	struct sockaddr_storage any = { .ss_family = AF_INET6 }, from = loopback(AF_INET, 0), to, who;
	int s = bound(&any), c = bound(&from);
	socklen_t len = sizeof who;

	name_port(&from, "client");
	to = loopback(AF_INET, ntohs(((struct sockaddr_in6 *)&any)->sin6_port));
	name_port(&to, "server");
	R(sendto(c, "x", 1, 0, SA(to), LEN));
	R(recvfrom(s, data, sizeof data, 0, SA(who), &len));
	show_addr("from", &who, len);
	R(sendto(s, "yz", 2, 0, SA(who), len));
	len = sizeof who;
	R(recvfrom(c, data, sizeof data, 0, SA(who), &len));
	show_addr("from", &who, len);
	SETOPT(s, IPPROTO_IPV6, IPV6_RECVPKTINFO, 1);
	R(sendto(c, "x", 1, 0, SA(to), LEN));
	receive(s, 256);
	close(c);
	close(s);
}

int main(void)
{
	SECTION("IPv4");
	four();
	SECTION("IPv6");
	six();
	SECTION("source");
	source();
	SECTION("class of one datagram");
	class_for_one();
	SECTION("IPv4 on IPv6");
	mapped();
	return 0;
}
