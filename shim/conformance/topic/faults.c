/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Pointers to nowhere, to what may only be read, and to what ends too early:
 * EFAULT, and no crash.
 *
 * conf: not sanitized, for the sanitizers look at arguments before the call.
 */
#include "conf.h"

#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/sendfile.h>

#define LEN sizeof(struct sockaddr_in)

static void *volatile nowhere = (void *)8; /* or the compiler objects */
static char *readonly, *edge; /* edge: 4 bytes before the end of the world */

static void map(void)
{
	char *p = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	need(p != MAP_FAILED && mprotect(p + 4096, 4096, PROT_NONE) == 0, "mprotect");
	edge = p + 4092;
	memcpy(edge, "edge", 4);
	readonly = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	need(readonly != MAP_FAILED, "mmap");
}

static void addresses(void)
{
	struct sockaddr_storage at, ss;
	int l = listener(AF_INET, &at), c = socket(AF_INET, SOCK_STREAM, 0), s;
	socklen_t len = sizeof ss;

	R(bind(c, NULL, LEN));
	R(bind(c, nowhere, LEN));
	R(bind(c, (struct sockaddr *)edge, LEN));
	R(connect(c, NULL, LEN));
	R(connect(c, nowhere, LEN));
	R(connect(c, (struct sockaddr *)edge, LEN));
	R(connect(c, SA(at), LEN));
	s = FD(accept(l, NULL, (socklen_t *)nowhere));
	R(getsockname(s, NULL, &len));
	R(getsockname(s, nowhere, &len));
	R(getsockname(s, SA(ss), NULL));
	R(getsockname(s, SA(ss), nowhere));
	R(getpeername(s, (struct sockaddr *)readonly, &len));
	R(getpeername(s, (struct sockaddr *)edge, &len));
	len = 4;
	R(getpeername(s, (struct sockaddr *)edge, &len));
	len = -1;
	R(getpeername(s, SA(ss), &len));
	len = 0;
	R(getpeername(s, nowhere, &len));
	show("%u", len);
	R(getsockname(l, nowhere, &(socklen_t){ 16 }));
	close(s);
	close(c);

	/* accept takes the connection, and loses it */
	c = dial(&at);
	await_events(l, POLLIN);
	FD(accept(l, nowhere, &(socklen_t){ 16 }));
	AWAIT(c, POLLRDHUP);
	close(c);
	c = dial(&at);
	await_events(l, POLLIN);
	FD(accept(l, SA(ss), NULL));
	close(c);
	fcntl(l, F_SETFL, O_NONBLOCK);
	FD(accept(l, nowhere, nowhere));
	close(l);
}

static void sending(void)
{
	struct iovec v[2] = { { "good", 4 }, { nowhere, 4 } };
	struct msghdr m = { .msg_iov = v, .msg_iovlen = 2 };
	struct mmsghdr mm[2] = { { .msg_hdr = { .msg_iov = v, .msg_iovlen = 1 } }, { .msg_hdr = { .msg_iov = v + 1, .msg_iovlen = 1 } } };
	char b[64];
	int c, s;

	memcpy(edge, "edge", 4);
	pair(AF_INET, &c, &s);
	R(send(c, NULL, 4, 0));
	R(send(c, nowhere, 4, 0));
	R(write(c, nowhere, 4));
	R(sendto(c, nowhere, 4, 0, NULL, 0));
	R(sendto(c, "x", 1, 0, nowhere, LEN));
	R(send(c, NULL, 0, 0));
	R(send(c, edge, 4, 0));
	R(send(c, edge, 8, 0));
	R(writev(c, NULL, 1));
	R(writev(c, nowhere, 1));
	R(writev(c, v + 1, 1));
	R(sendmsg(c, NULL, 0));
	R(sendmsg(c, nowhere, 0));
	m.msg_iov = nowhere;
	R(sendmsg(c, &m, 0));
	m.msg_iov = v + 1;
	m.msg_iovlen = 1;
	R(sendmsg(c, &m, 0));
	m.msg_iov = v;
	m.msg_control = nowhere;
	m.msg_controllen = 32;
	R(sendmsg(c, &m, 0));
	m.msg_controllen = 0;
	m.msg_name = nowhere;
	m.msg_namelen = LEN;
	R(sendmsg(c, &m, 0));
	R(sendmmsg(c, mm, 2, 0));
	show("%u", mm[0].msg_len);
	R(sendmmsg(c, nowhere, 1, 0));
	int f = open("/proc/self/exe", O_RDONLY);
	R(sendfile(c, f, nowhere, 10));
	close(f);
	R(shutdown(c, SHUT_WR));
	R(recv(s, b, 64, MSG_WAITALL)); /* only what was good has come */
	show_bytes("got", b, 8);
	R(send(c, nowhere, 4, MSG_NOSIGNAL));
	close(c);
	close(s);
}

static void receiving(void)
{
	struct iovec v = { nowhere, 4 };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1 };
	char b[64];
	int c, s;

	pair(AF_INET, &c, &s);
	R(recv(s, nowhere, 4, MSG_DONTWAIT));
	R(send(c, "0123456789", 10, 0));
	await_bytes(s, 10);
	R(recv(s, NULL, 4, 0));
	R(recv(s, nowhere, 4, 0));
	R(read(s, nowhere, 4));
	R(recv(s, readonly, 4, 0));
	R(recv(s, nowhere, 4, MSG_PEEK));
	R(recvfrom(s, nowhere, 4, 0, NULL, NULL));
	R(readv(s, NULL, 1));
	R(readv(s, nowhere, 1));
	R(readv(s, &v, 1));
	R(recvmsg(s, NULL, 0));
	R(recvmsg(s, nowhere, 0));
	R(recvmsg(s, &m, 0));
	m.msg_iov = nowhere;
	R(recvmsg(s, &m, 0));
	R(recvmmsg(s, nowhere, 1, 0, NULL));
	R(recv(s, b, 10, 0)); /* nothing has been lost */
	show_bytes("got", b, 10);
	R(send(c, "x", 1, 0));
	R(recvfrom(s, b, 1, 0, SA((struct sockaddr_storage){ 0 }), nowhere));
	close(c);
	close(s);
}

static void options(void)
{
	int c, s, v = 1;
	socklen_t len = sizeof v;

	pair(AF_INET, &c, &s);
	R(setsockopt(s, SOL_SOCKET, SO_KEEPALIVE, NULL, sizeof v));
	R(setsockopt(s, SOL_SOCKET, SO_KEEPALIVE, nowhere, sizeof v));
	R(setsockopt(s, IPPROTO_TCP, TCP_NODELAY, nowhere, sizeof v));
	R(setsockopt(s, SOL_SOCKET, SO_LINGER, edge, sizeof(struct linger)));
	R(setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, nowhere, sizeof(struct timeval)));
	R(getsockopt(s, SOL_SOCKET, SO_KEEPALIVE, NULL, &len));
	R(getsockopt(s, SOL_SOCKET, SO_KEEPALIVE, nowhere, &len));
	R(getsockopt(s, SOL_SOCKET, SO_KEEPALIVE, &v, NULL));
	R(getsockopt(s, SOL_SOCKET, SO_KEEPALIVE, &v, nowhere));
	R(getsockopt(s, IPPROTO_TCP, TCP_NODELAY, readonly, &len));
	R(getsockopt(s, IPPROTO_TCP, TCP_INFO, nowhere, &(socklen_t){ 100 }));
	len = -1;
	R(getsockopt(s, SOL_SOCKET, SO_TYPE, &v, &len));
	R(ioctl(s, FIONREAD, NULL));
	R(ioctl(s, FIONREAD, nowhere));
	R(ioctl(s, FIONBIO, nowhere));
	R(ioctl(s, TIOCOUTQ, readonly));
	close(c);
	close(s);
}

static void waiting(void)
{
	struct epoll_event e = { .events = EPOLLIN };
	struct timespec t = { 0, 0 };
	fd_set set;
	int c, s, ep = epoll_create1(0);

	pair(AF_INET, &c, &s);
	R(epoll_ctl(ep, EPOLL_CTL_ADD, s, nowhere));
	R(epoll_ctl(ep, EPOLL_CTL_ADD, s, NULL));
	R(epoll_ctl(ep, EPOLL_CTL_DEL, s, NULL));
	R(epoll_ctl(ep, EPOLL_CTL_ADD, s, &e));
	R(epoll_ctl(ep, EPOLL_CTL_DEL, s, nowhere));
	R(epoll_ctl(ep, EPOLL_CTL_ADD, s, &e));
	R(epoll_wait(ep, nowhere, 1, 0));
	R(send(c, "x", 1, 0));
	await_events(s, POLLIN);
	R(epoll_wait(ep, nowhere, 1, 1000));
	R(epoll_wait(ep, &e, 1, 1000)); /* it is still there */
	R(epoll_wait(ep, NULL, 1, 1000));
	R(poll(nowhere, 1, 0));
	R(poll(NULL, 1, 0));
	FD_ZERO(&set);
	FD_SET(s, &set);
	R(select(s + 1, nowhere, NULL, NULL, &(struct timeval){ 0, 0 }));
	R(pselect(s + 1, &set, nowhere, NULL, &t, NULL));
	close(ep);
	close(c);
	close(s);
}

/* Larger than a page, and larger than a record of the rings. */
static void large(void)
{
	size_t size = 1 << 20;
	char *p = mmap(NULL, 2 * size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	static char b[1 << 20];
	ssize_t n, got = 0;
	int c, s;

	need(p != MAP_FAILED && mprotect(p + size, size, PROT_NONE) == 0, "mprotect");
	fill(p, size);
	pair(AF_INET, &c, &s);
	fcntl(s, F_SETFL, O_NONBLOCK);
	if (fork() == 0) {
		close(s);
		close(c);
		_exit(0);
	}
	wait(NULL);
	/* a good part first: what went is told, or that it was bad, but not both */
	n = send(c, p + size - 8192, 16384, 0);
	show("no crash: %d", n == -1 || (n > 0 && n <= 8192));
	shutdown(c, SHUT_WR);
	while (got < (n > 0 ? n : 0)) {
		await_events(s, POLLIN);
		ssize_t k = recv(s, b + got, sizeof b - got, 0);
		if (k <= 0)
			break;
		got += k;
	}
	show("as told: %d", got == (n > 0 ? n : 0) && !memcmp(b, p + size - 8192, got));
	close(c);
	close(s);
}

int main(void)
{
	map();
	SECTION("addresses");
	addresses();
	SECTION("sending");
	sending();
	SECTION("receiving");
	receiving();
	SECTION("options");
	options();
	SECTION("waiting");
	waiting();
	SECTION("large");
	large();
	return 0;
}
