/* SPDX-License-Identifier: Apache-2.0 */

/*
 * IPv6 sockets that also speak IPv4, and those that do not.
 */
#include "conf.h"

static char b[16];

static struct sockaddr_storage mapped(const struct sockaddr_storage *v4, const char *ip)
{
	struct sockaddr_storage ss = { .ss_family = AF_INET6 };
	struct sockaddr_in6 *to = (struct sockaddr_in6 *)&ss;

	inet_pton(AF_INET6, ip, &to->sin6_addr);
	to->sin6_port = ((const struct sockaddr_in *)v4)->sin_port;
	return ss;
}

static void exchange(int c, int s)
{
	R(send(c, "ping", 4, 0));
	R(recv(s, b, 4, MSG_WAITALL));
	R(send(s, "pong", 4, 0));
	R(recv(c, b, 4, MSG_WAITALL));
	close(c);
	close(s);
}

/* An IPv6 socket that connects to an IPv4 server. */
static void mapped_client(void)
{
	struct sockaddr_storage at, to;
	socklen_t len = sizeof to;
	int l = listener(AF_INET, &at), c, s;

	name_port(&at, "listener");
	to = mapped(&at, "::ffff:127.0.0.1");
	c = FD(socket(AF_INET6, SOCK_STREAM, 0));
	R(connect(c, SA(to), sizeof(struct sockaddr_in6)));
	struct sockaddr_storage from = bound_to(c);
	name_port(&from, "client");
	WHERE(getsockname, c);
	WHERE(getpeername, c);
	s = FD(accept(l, SA(to), &len));
	show_addr("peer", &to, len);
	OPT(c, SOL_SOCKET, SO_DOMAIN);
	exchange(c, s);
	close(l);
}

/* An IPv6 server that both kinds of clients reach. */
static void dual(bool wildcard)
{
	struct sockaddr_storage any = { .ss_family = AF_INET6 }, at, v4, v6, who;
	socklen_t len = sizeof who;
	int l = socket(AF_INET6, SOCK_STREAM, 0), c, s;

	if (!wildcard)
		any = mapped(&(struct sockaddr_storage){ .ss_family = AF_INET }, "::ffff:127.0.0.1");
	OPT(l, IPPROTO_IPV6, IPV6_V6ONLY);
	R(bind(l, SA(any), sizeof(struct sockaddr_in6)));
	R(listen(l, 4));
	at = bound_to(l);
	name_port(&at, "listener");
	WHERE(getsockname, l);
	v4 = loopback(AF_INET, ntohs(((struct sockaddr_in6 *)&at)->sin6_port));
	v6 = loopback(AF_INET6, ntohs(((struct sockaddr_in6 *)&at)->sin6_port));

	c = socket(AF_INET, SOCK_STREAM, 0);
	R(connect(c, SA(v4), sizeof(struct sockaddr_in)));
	struct sockaddr_storage from = bound_to(c);
	name_port(&from, "client");
	s = FD(accept(l, SA(who), &len));
	show_addr("peer", &who, len);
	WHERE(getsockname, s);
	WHERE(getpeername, s);
	OPT(s, SOL_SOCKET, SO_DOMAIN);
	OPT(s, IPPROTO_IPV6, IPV6_V6ONLY);
	exchange(c, s);

	c = socket(AF_INET6, SOCK_STREAM, 0);
	R(connect(c, SA(v6), sizeof(struct sockaddr_in6)));
	if (wildcard) {
		s = FD(accept(l, SA(who), &len));
		WHERE(getsockname, s);
		exchange(c, s);
	} else {
		close(c);
	}
	close(l);
}

static void v6only(void)
{
	struct sockaddr_storage any = { .ss_family = AF_INET6 }, at, v4, to;
	int l = socket(AF_INET6, SOCK_STREAM, 0), c, s, l4;

	SETOPT(l, IPPROTO_IPV6, IPV6_V6ONLY, 1);
	OPT(l, IPPROTO_IPV6, IPV6_V6ONLY);
	R(bind(l, SA(any), sizeof(struct sockaddr_in6)));
	SETOPT(l, IPPROTO_IPV6, IPV6_V6ONLY, 0); /* too late */
	R(listen(l, 4));
	at = bound_to(l);
	v4 = loopback(AF_INET, ntohs(((struct sockaddr_in6 *)&at)->sin6_port));
	c = socket(AF_INET, SOCK_STREAM, 0);
	R(connect(c, SA(v4), sizeof(struct sockaddr_in)));
	close(c);
	to = loopback(AF_INET6, ntohs(((struct sockaddr_in6 *)&at)->sin6_port));
	c = socket(AF_INET6, SOCK_STREAM, 0);
	R(connect(c, SA(to), sizeof(struct sockaddr_in6)));
	s = FD(accept(l, NULL, NULL));
	exchange(c, s);
	/* the IPv4 side of the port is free */
	l4 = socket(AF_INET, SOCK_STREAM, 0);
	R(bind(l4, SA(v4), sizeof(struct sockaddr_in)));
	R(listen(l4, 1));
	c = socket(AF_INET, SOCK_STREAM, 0);
	R(connect(c, SA(v4), sizeof(struct sockaddr_in)));
	close(c);
	close(l4);
	close(l);

	c = socket(AF_INET6, SOCK_STREAM, 0);
	SETOPT(c, IPPROTO_IPV6, IPV6_V6ONLY, 1);
	to = mapped(&v4, "::ffff:127.0.0.1");
	R(connect(c, SA(to), sizeof(struct sockaddr_in6)));
	R(bind(c, SA(to), sizeof(struct sockaddr_in6)));
	close(c);
}

/* One address of IPv6 leaves nothing to IPv4, and the option says so. */
static void one_address(int type)
{
	struct sockaddr_storage six = loopback(AF_INET6, 0), four = { .ss_family = AF_INET }, to;
	int fd = socket(AF_INET6, type, 0);

	OPT(fd, IPPROTO_IPV6, IPV6_V6ONLY);
	R(bind(fd, SA(six), sizeof(struct sockaddr_in6)));
	OPT(fd, IPPROTO_IPV6, IPV6_V6ONLY);
	SETOPT(fd, IPPROTO_IPV6, IPV6_V6ONLY, 0);
	((struct sockaddr_in *)&four)->sin_port = htons(9);
	to = mapped(&four, "::ffff:127.0.0.1");
	R(connect(fd, SA(to), sizeof(struct sockaddr_in6)));
	if (type == SOCK_DGRAM)
		R(sendto(fd, "x", 1, 0, SA(to), sizeof(struct sockaddr_in6)));
	close(fd);

	fd = socket(AF_INET6, type, 0);
	to = mapped(&(struct sockaddr_storage){ .ss_family = AF_INET }, "::ffff:127.0.0.1");
	R(bind(fd, SA(to), sizeof(struct sockaddr_in6)));
	OPT(fd, IPPROTO_IPV6, IPV6_V6ONLY);
	SETOPT(fd, IPPROTO_IPV6, IPV6_UNICAST_HOPS, 3);
	OPT(fd, IPPROTO_IPV6, IPV6_UNICAST_HOPS);
	close(fd);
}

/* A port that both families use is taken for both. */
static void conflicts(void)
{
	struct sockaddr_storage any = { .ss_family = AF_INET6 }, v4 = { .ss_family = AF_INET };
	int l = socket(AF_INET6, SOCK_STREAM, 0), l4 = socket(AF_INET, SOCK_STREAM, 0);

	R(bind(l, SA(any), sizeof(struct sockaddr_in6)));
	R(listen(l, 1));
	struct sockaddr_storage at = bound_to(l);
	((struct sockaddr_in *)&v4)->sin_port = ((struct sockaddr_in6 *)&at)->sin6_port;
	R(bind(l4, SA(v4), sizeof(struct sockaddr_in)));
	close(l4);
	close(l);
}

static void any_address(void)
{
	struct sockaddr_storage at, any = { .ss_family = AF_INET };
	int l = listener(AF_INET, &at), c, s;

	/* 0.0.0.0 as a destination is this machine */
	name_port(&at, "listener");
	((struct sockaddr_in *)&any)->sin_port = ((struct sockaddr_in *)&at)->sin_port;
	c = socket(AF_INET, SOCK_STREAM, 0);
	R(connect(c, SA(any), sizeof(struct sockaddr_in)));
	WHERE(getpeername, c);
	s = FD(accept(l, NULL, NULL));
	exchange(c, s);
	close(l);

	l = listener(AF_INET6, &at);
	name_port(&at, "listener");
	any = (struct sockaddr_storage){ .ss_family = AF_INET6 };
	((struct sockaddr_in6 *)&any)->sin6_port = ((struct sockaddr_in6 *)&at)->sin6_port;
	c = socket(AF_INET6, SOCK_STREAM, 0);
	R(connect(c, SA(any), sizeof(struct sockaddr_in6)));
	WHERE(getpeername, c);
	s = FD(accept(l, NULL, NULL));
	exchange(c, s);
	close(l);
}

/* All of 127.0.0.0/8 is this machine. */
static void other_loopback(void)
{
	struct sockaddr_storage at = loopback(AF_INET, 0), from;
	int l = socket(AF_INET, SOCK_STREAM, 0), c, s;

	((struct sockaddr_in *)&at)->sin_addr.s_addr = htonl(0x7f010203);
	R(bind(l, SA(at), sizeof(struct sockaddr_in)));
	R(listen(l, 1));
	at = bound_to(l);
	c = dial(&at);
	from = bound_to(c);
	name_port(&from, "client");
	name_port(&at, "listener");
	WHERE(getpeername, c);
	s = FD(accept(l, NULL, NULL));
	WHERE(getsockname, s);
	WHERE(getpeername, s);
	exchange(c, s);
	close(l);
}

int main(void)
{
	SECTION("IPv4-mapped client");
	mapped_client();
	SECTION("both families");
	dual(true);
	SECTION("IPv4-mapped server");
	dual(false);
	SECTION("IPV6_V6ONLY");
	v6only();
	SECTION("one address");
	one_address(SOCK_STREAM);
	SECTION("one address, datagrams");
	one_address(SOCK_DGRAM);
	SECTION("conflicts");
	conflicts();
	SECTION("the unspecified address");
	any_address();
	SECTION("127.1.2.3");
	other_loopback();
	return 0;
}
