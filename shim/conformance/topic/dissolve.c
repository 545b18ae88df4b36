/* SPDX-License-Identifier: Apache-2.0 */

/*
 * connect with AF_UNSPEC ends a connection and leaves a socket that can be
 * connected again.
 */
#include "conf.h"

#define LEN sizeof(struct sockaddr_in)

static const struct sockaddr none = { .sa_family = AF_UNSPEC };
static char b[64];

static void connection(int family)
{
	struct sockaddr_storage at;
	int l = listener(family, &at), c, s;

	name_port(&at, "listener");
	c = dial(&at);
	s = accept(l, NULL, NULL);
	R(send(c, "lost?", 5, 0));
	await_bytes(s, 5);
	R(connect(c, &none, sizeof none));
	WHERE(getpeername, c);
	READY(c);
	AWAIT(s, POLLERR);
	R(recv(s, b, sizeof b, 0));
	close(s);
	R(connect(c, SA(at), addr_len(&at)));
	WHERE(getpeername, c);
	s = FD(accept(l, NULL, NULL));
	R(send(c, "hi", 2, 0));
	R(recv(s, b, sizeof b, 0));
	R(send(s, "there", 5, 0));
	R(recv(c, b, 5, MSG_WAITALL));
	R(shutdown(c, SHUT_WR));
	R(recv(s, b, sizeof b, 0));
	close(c);
	close(s);
	close(l);
}

static void error_pending(void)
{
	int c, s;

	pair(AF_INET, &c, &s);
	R(connect(c, &none, sizeof none));
	OPT(c, SOL_SOCKET, SO_ERROR);
	OPT(c, SOL_SOCKET, SO_ERROR);
	READY(c);
	R(recv(c, b, sizeof b, 0));
	R(send(c, "x", 1, MSG_NOSIGNAL));
	R(connect(c, &none, sizeof none));
	close(c);
	close(s);
}

static void with_unread_data(void)
{
	struct sockaddr_storage at;
	int l = listener(AF_INET, &at), c = dial(&at), s = accept(l, NULL, NULL);

	R(send(s, "old", 3, 0));
	await_bytes(c, 3);
	R(connect(c, &none, sizeof none));
	R(connect(c, SA(at), LEN));
	close(s);
	s = FD(accept(l, NULL, NULL));
	R(send(s, "new", 3, 0));
	R(recv(c, b, sizeof b, 0));
	show_bytes("got", b, 3);
	close(c);
	close(s);
	close(l);
}

static void accepted(void)
{
	struct sockaddr_storage at;
	int l = listener(AF_INET, &at), c = dial(&at), s = accept(l, NULL, NULL);

	R(connect(s, SA(at), LEN));
	R(connect(s, &none, sizeof none));
	AWAIT(c, POLLERR);
	R(connect(s, SA(at), LEN));
	close(c);
	c = FD(accept(l, NULL, NULL));
	R(send(s, "again", 5, 0));
	R(recv(c, b, 5, MSG_WAITALL));
	close(c);
	close(s);
	close(l);
}

static void other_states(void)
{
	struct sockaddr_storage at, any = loopback(AF_INET, 0);
	int c = socket(AF_INET, SOCK_STREAM, 0), l = listener(AF_INET, &at), s;

	R(connect(c, &none, sizeof none));
	R(connect(c, &none, sizeof(sa_family_t)));
	R(connect(c, &none, 1));
	READY(c);
	R(connect(c, SA(at), LEN));
	close(c);
	s = accept(l, NULL, NULL);
	close(s);

	c = socket(AF_INET, SOCK_STREAM, 0);
	R(bind(c, SA(any), LEN));
	R(connect(c, &none, sizeof none));
	R(connect(c, SA(at), LEN));
	close(c);
	s = accept(l, NULL, NULL);
	close(s);

	/* a listener: closed for now, as HAProxy pauses */
	fcntl(l, F_SETFL, O_NONBLOCK);
	R(connect(l, &none, sizeof none));
	OPT(l, SOL_SOCKET, SO_ACCEPTCONN);
	FD(accept(l, NULL, NULL));
	c = socket(AF_INET, SOCK_STREAM, 0);
	R(connect(c, SA(at), LEN));
	R(connect(c, &none, sizeof none)); /* after a refusal */
	OPT(c, SOL_SOCKET, SO_ERROR);
	close(c);
	close(l);
}

int main(void)
{
	SECTION("a connection, IPv4");
	connection(AF_INET);
	SECTION("a connection, IPv6");
	connection(AF_INET6);
	SECTION("the error");
	error_pending();
	SECTION("unread data");
	with_unread_data();
	SECTION("accepted");
	accepted();
	SECTION("other states");
	other_states();
	return 0;
}
