/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Socket options as far as the shim decides about them, over a DPU double: what
 * is refused, what an accepted connection has of its listener, and how small
 * buffers hold a writer.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fake_dpu.h"

#define SO_ORIGINAL_DST 80

static struct sockaddr_in to(uint16_t port)
{
	struct sockaddr_in sa = { .sin_family = AF_INET, .sin_port = htons(port) };

	inet_pton(AF_INET, "198.18.0.1", &sa.sin_addr);
	return sa;
}

static int get(int fd, int level, int name)
{
	int v = -1;
	socklen_t len = sizeof v;

	return getsockopt(fd, level, name, &v, &len) ? -errno : v;
}

static uint64_t cookie(int fd)
{
	uint64_t v = 0;
	socklen_t len = sizeof v;

	CHECK(getsockopt(fd, SOL_SOCKET, SO_COOKIE, &v, &len) == 0 && len == sizeof v && v);
	return v;
}

static int set(int fd, int level, int name, int v)
{
	return setsockopt(fd, level, name, &v, sizeof v) ? -errno : 0;
}

/* A listener with options, and the port it got. */
static int serve(uint16_t *port)
{
	struct sockaddr_in sa = to(0);
	socklen_t len = sizeof sa;
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	CHECK(set(fd, IPPROTO_TCP, TCP_NODELAY, 17) == 0);
	CHECK(set(fd, IPPROTO_TCP, TCP_KEEPIDLE, 77) == 0);
	CHECK(set(fd, SOL_SOCKET, SO_PRIORITY, 3) == 0);
	CHECK(set(fd, SOL_SOCKET, SO_SNDBUF, 4096) == 0);
	CHECK(bind(fd, (struct sockaddr *)&sa, sizeof sa) == 0);
	CHECK(listen(fd, 16) == 0);
	CHECK(getsockname(fd, (struct sockaddr *)&sa, &len) == 0);
	*port = ntohs(sa.sin_port);
	return fd;
}

static int meet(int l, uint16_t port)
{
	struct pollfd p = { .fd = l, .events = POLLIN };
	int fd;

	CHECK(poll(&p, 1, 50) == 0); /* who waits is who gets connections */
	fake_dial(port);
	CHECK(poll(&p, 1, 5000) == 1);
	fd = accept(l, NULL, NULL);
	CHECK(fd >= 0);
	return fd;
}

static void inherited(void)
{
	uint16_t port;
	int l = serve(&port), a = meet(l, port), b;

	CHECK(get(a, IPPROTO_TCP, TCP_NODELAY) == 1);
	CHECK(get(a, IPPROTO_TCP, TCP_KEEPIDLE) == 77);
	CHECK(get(a, SOL_SOCKET, SO_PRIORITY) == 3);
	CHECK(get(a, SOL_SOCKET, SO_SNDBUF) == 8192);
	CHECK(get(a, IPPROTO_TCP, TCP_KEEPCNT) == 9); /* the default */
	CHECK(set(a, IPPROTO_TCP, TCP_KEEPIDLE, 5) == 0);
	CHECK(set(l, IPPROTO_TCP, TCP_KEEPIDLE, 88) == 0);
	b = meet(l, port);
	CHECK(get(a, IPPROTO_TCP, TCP_KEEPIDLE) == 5);
	CHECK(get(b, IPPROTO_TCP, TCP_KEEPIDLE) == 88);
	CHECK(cookie(a) == cookie(a) && cookie(a) != cookie(b));
	close(l); /* what it gave outlives it */
	CHECK(get(b, SOL_SOCKET, SO_PRIORITY) == 3);
	close(a);
	CHECK(get(b, IPPROTO_TCP, TCP_NODELAY) == 1);
	close(b);
}

/* The kernel's rules, on a connection that shares its kernel file. */
static void rules(void)
{
	struct linger on = { 7, 3 }, off = { 0, 9 }, l;
	uint16_t port;
	int listener = serve(&port), fd = meet(listener, port);
	socklen_t len = sizeof l;
	char small[2] = { 1, 0 };

	CHECK(set(fd, IPPROTO_TCP, TCP_KEEPIDLE, 0) == -EINVAL);
	CHECK(set(fd, IPPROTO_TCP, TCP_KEEPIDLE, 32768) == -EINVAL);
	CHECK(set(fd, IPPROTO_TCP, TCP_KEEPCNT, 128) == -EINVAL);
	CHECK(set(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, -1) == -EINVAL);
	CHECK(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, small, sizeof small) == -1 && errno == EINVAL);
	CHECK(setsockopt(fd, SOL_SOCKET, SO_LINGER, &on, sizeof on - 1) == -1 && errno == EINVAL);
	CHECK(setsockopt(fd, SOL_SOCKET, SO_LINGER, &on, sizeof on) == 0);
	CHECK(getsockopt(fd, SOL_SOCKET, SO_LINGER, &l, &len) == 0 && l.l_onoff == 1 && l.l_linger == 3);
	CHECK(setsockopt(fd, SOL_SOCKET, SO_LINGER, &off, sizeof off) == 0);
	CHECK(getsockopt(fd, SOL_SOCKET, SO_LINGER, &l, &len) == 0 && l.l_onoff == 0 && l.l_linger == 3);
	CHECK(set(fd, SOL_SOCKET, SO_RCVBUF, 1) == 0 && get(fd, SOL_SOCKET, SO_RCVBUF) == 2304);
	CHECK(set(fd, SOL_SOCKET, SO_ACCEPTCONN, 1) == -ENOPROTOOPT);
	CHECK(set(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1) < 0); /* an IPv4 socket */
	CHECK(get(fd, IPPROTO_IP, SO_ORIGINAL_DST) == -ENOENT);
	close(fd);
	close(listener);
}

static void refused(void)
{
	struct sockaddr_in sa = to(PORT_ECHO);
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	for (int round = 0; round < 2; round++) { /* undecided, and connected */
		CHECK(set(fd, SOL_SOCKET, SO_MARK, 7) == -ENOPROTOOPT);
		CHECK(set(fd, SOL_SOCKET, SO_MARK, 0) == 0 || errno == EPERM); /* off, as everywhere */
		CHECK(setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, "lo", 3) == -1 && errno == ENODEV);
		CHECK(set(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, 4096) == -ENOPROTOOPT);
		CHECK(setsockopt(fd, IPPROTO_TCP, TCP_ULP, "tls", 3) == -1 && errno == ENOENT);
		CHECK(setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "nosuch", 6) == -1 && errno == ENOENT);
		CHECK(set(fd, SOL_SOCKET, SO_KEEPALIVE, 1) == 0 && get(fd, SOL_SOCKET, SO_KEEPALIVE) == 1);
		if (!round)
			CHECK(connect(fd, (struct sockaddr *)&sa, sizeof sa) == 0);
	}
	CHECK(set(fd, 255, 1, 1) == -ENOPROTOOPT);
	close(fd);
	/* hostd has not granted it, though the kernel might. */
	fd = socket(AF_INET, SOCK_STREAM, 0);
	CHECK(set(fd, IPPROTO_IP, IP_TRANSPARENT, 1) == -EPERM);
	close(fd);
}

/* The peer takes nothing: half of the buffer is what the host may hold. */
static void bounded(void)
{
	struct sockaddr_in sa = to(PORT_SILENT);
	char data[1000] = "";
	int fd = socket(AF_INET, SOCK_STREAM, 0), sent = 0;
	ssize_t n;

	CHECK(set(fd, SOL_SOCKET, SO_SNDBUF, 10000) == 0 && get(fd, SOL_SOCKET, SO_SNDBUF) == 20000);
	CHECK(connect(fd, (struct sockaddr *)&sa, sizeof sa) == 0);
	while ((n = send(fd, data, sizeof data, MSG_DONTWAIT)) > 0)
		sent += n;
	CHECK(errno == EAGAIN && sent == 10000);
	CHECK(set(fd, SOL_SOCKET, SO_SNDBUF, 12000) == 0);
	CHECK(send(fd, data, sizeof data, MSG_DONTWAIT) == 1000);
	CHECK(set(fd, SOL_SOCKET, SO_SNDBUF, 5000) == 0); /* less than is there */
	CHECK(send(fd, data, sizeof data, MSG_DONTWAIT) == -1 && errno == EAGAIN);
	close(fd);
}

int main(void)
{
	alarm(240);
	fake_start(2, PNO_MIN_RING_SIZE * 2);
	inherited();
	rules();
	refused();
	bounded();
	fake_stop();
	puts("ok options");
	return 0;
}
