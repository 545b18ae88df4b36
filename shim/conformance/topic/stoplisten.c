/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A listener is closed right after its last connection was accepted, as event
 * loops do: out of the epoll instance, once round, close. The connection lives.
 */
#include <sys/epoll.h>

#include "conf.h"

#define TIMES 40

static bool once(void)
{
	struct sockaddr_storage at;
	struct epoll_event ev = { .events = EPOLLIN };
	int l = listener(AF_INET, &at), ep = epoll_create1(0), c, s;
	char byte = 0;
	bool ok;

	need(ep >= 0 && epoll_ctl(ep, EPOLL_CTL_ADD, l, &ev) == 0, "epoll_ctl");
	c = dial(&at);
	need(epoll_wait(ep, &ev, 1, 5000) == 1, "epoll_wait");
	s = accept4(l, NULL, NULL, SOCK_NONBLOCK);
	need(s >= 0, "accept");
	epoll_ctl(ep, EPOLL_CTL_DEL, l, NULL);
	epoll_wait(ep, &ev, 1, 0);
	close(l);
	write_all(c, "x", 1);
	await_events(s, POLLIN);
	ok = read(s, &byte, 1) == 1 && byte == 'x';
	close(c);
	await_events(s, POLLIN);
	ok = ok && read(s, &byte, 1) == 0;
	close(s);
	close(ep);
	return ok;
}

/* A port that bind has named stays with shutdown; another is given back, and
 * the socket is as good as new. */
static void again(bool named)
{
	struct sockaddr_storage at = loopback(AF_INET, 0), was, now;
	socklen_t len = sizeof now;
	int l = socket(AF_INET, SOCK_STREAM, 0), c;

	if (named) { /* one that was free a moment ago */
		int other = socket(AF_INET, SOCK_STREAM, 0);

		need(bind(other, SA(at), addr_len(&at)) == 0, "bind");
		at = bound_to(other);
		close(other);
	}
	R(bind(l, SA(at), addr_len(&at)));
	R(listen(l, 5));
	was = bound_to(l);
	R(shutdown(l, SHUT_RD));
	OPT(l, SOL_SOCKET, SO_ACCEPTCONN);
	READY(l);
	R(accept(l, NULL, NULL));
	R(shutdown(l, SHUT_RD));
	c = socket(AF_INET, SOCK_STREAM, 0);
	R(connect(c, SA(was), addr_len(&was)));
	R(listen(l, 5));
	OPT(l, SOL_SOCKET, SO_ACCEPTCONN);
	R(getsockname(l, SA(now), &len));
	R(((struct sockaddr_in *)&now)->sin_port == ((struct sockaddr_in *)&was)->sin_port);
	R(connect(c, SA(was), addr_len(&was)));
	close(c);
	c = FD(dial(&now));
	close(c);
	close(l);
}

/* Out of epoll's sight it never was. */
static void again_in_epoll(void)
{
	struct sockaddr_storage at;
	struct epoll_event ev = { .events = EPOLLIN };
	int l = listener(AF_INET, &at), ep = epoll_create1(0), c, s;

	R(epoll_ctl(ep, EPOLL_CTL_ADD, l, &ev));
	c = dial(&at);
	R(epoll_wait(ep, &ev, 1, 5000));
	close(FD(accept(l, NULL, NULL)));
	close(c);
	for (int i = 0; i < 3; i++) {
		R(shutdown(l, SHUT_RDWR));
		R(epoll_wait(ep, &ev, 1, 0));
		show("events %#x", ev.events);
		R(listen(l, 5));
		R(epoll_wait(ep, &ev, 1, 0));
		at = bound_to(l);
		c = FD(dial(&at));
		R(epoll_wait(ep, &ev, 1, 5000));
		show("events %#x", ev.events);
		s = FD(accept(l, NULL, NULL));
		close(s), close(c);
	}
	R(epoll_ctl(ep, EPOLL_CTL_DEL, l, NULL));
	close(l), close(ep);
}

int main(void)
{
	int good = 0;

	SECTION("again and again");
	for (int i = 0; i < TIMES; i++)
		good += once();
	R(good);
	SECTION("listen again, port named");
	again(true);
	SECTION("listen again, any port");
	again(false);
	SECTION("listen again, watched");
	again_in_epoll();
	return 0;
}
