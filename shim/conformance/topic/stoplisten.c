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

int main(void)
{
	int good = 0;

	SECTION("again and again");
	for (int i = 0; i < TIMES; i++)
		good += once();
	R(good);
	return 0;
}
