/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Datagram sockets over a DPU double in the same process, with two shards and
 * rings so small that a few datagrams fill them.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fake_dpu.h"

static struct sockaddr_in to(const char *ip, uint16_t port)
{
	struct sockaddr_in sa = { .sin_family = AF_INET, .sin_port = htons(port) };

	inet_pton(AF_INET, ip, &sa.sin_addr);
	return sa;
}

static int dgram(uint16_t port)
{
	struct sockaddr_in sa = to("198.18.0.1", port);
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	CHECK(fd >= 0);
	if (port)
		CHECK(connect(fd, (struct sockaddr *)&sa, sizeof sa) == 0);
	return fd;
}

static ssize_t send_to(int fd, const char *ip, uint16_t port, const void *buf, size_t len)
{
	struct sockaddr_in sa = to(ip, port);

	return sendto(fd, buf, len, 0, (struct sockaddr *)&sa, sizeof sa);
}

/* Boundaries, truncation and peeking, on a connected socket. */
static void messages(void)
{
	static uint8_t out[60000], in[65536];
	int fd = dgram(PORT_ECHO), n;
	struct sockaddr_in sa;
	socklen_t len = sizeof sa;

	CHECK(getpeername(fd, (struct sockaddr *)&sa, &len) == 0 && sa.sin_port == htons(PORT_ECHO));
	CHECK(getsockname(fd, (struct sockaddr *)&sa, &len) == 0 && sa.sin_port);
	for (size_t i = 0; i < sizeof out; i++)
		out[i] = pattern(i);
	for (size_t k = 0; k <= 40000; k = k ? k * 5 : 1) {
		CHECK(send(fd, out, k, 0) == (ssize_t)k);
		CHECK(recv(fd, in, sizeof in, 0) == (ssize_t)k && !memcmp(in, out, k));
	}
	CHECK(send(fd, out, 65508, 0) == -1 && errno == EMSGSIZE);
	CHECK(send(fd, "abcdef", 6, 0) == 6);
	CHECK(recv(fd, in, 2, MSG_PEEK) == 2);
	CHECK(recv(fd, in, 2, MSG_PEEK | MSG_TRUNC) == 6);
	CHECK(ioctl(fd, FIONREAD, &n) == 0 && n == 6);
	CHECK(recv(fd, in, 4, 0) == 4 && !memcmp(in, "abcd", 4));
	CHECK(recv(fd, in, 4, MSG_DONTWAIT) == -1 && errno == EAGAIN);
	CHECK(write(fd, "xy", 2) == 2 && read(fd, in, sizeof in) == 2);
	CHECK(close(fd) == 0);
}

/* No address, many addresses, the sender's name, and several at once. */
static void unconnected(void)
{
	struct sockaddr_in sa = to("198.18.0.2", 0), from[3];
	struct mmsghdr m[3] = { 0 };
	struct iovec v[3];
	char buf[3][20];
	socklen_t len = sizeof sa;
	int fd = dgram(0);

	CHECK(bind(fd, (struct sockaddr *)&sa, sizeof sa) == 0);
	CHECK(bind(fd, (struct sockaddr *)&sa, sizeof sa) == -1 && errno == EINVAL);
	CHECK(getsockname(fd, (struct sockaddr *)&sa, &len) == 0 && sa.sin_port);
	CHECK(send(fd, "x", 1, 0) == -1 && errno == EDESTADDRREQ);
	CHECK(getpeername(fd, (struct sockaddr *)&sa, &len) == -1 && errno == ENOTCONN);
	CHECK(send_to(fd, "198.18.0.5", 0, "x", 1) == -1 && errno == EINVAL);
	for (int i = 0; i < 3; i++) {
		char ip[16];

		v[i] = (struct iovec){ buf[i], sizeof buf[i] };
		m[i].msg_hdr = (struct msghdr){
			.msg_iov = &v[i], .msg_iovlen = 1, .msg_name = &from[i], .msg_namelen = sizeof from[i] };
		snprintf(ip, sizeof ip, "198.18.0.%d", 10 + i);
		CHECK(send_to(fd, ip, PORT_ECHO, "hello", i + 1) == i + 1);
	}
	CHECK(recvmmsg(fd, m, 3, 0, NULL) == 3);
	for (int i = 0, seen = 0; i < 3; i++) {
		int k = m[i].msg_len - 1;

		CHECK(k >= 0 && k < 3 && !(seen >> k & 1));
		seen |= 1 << k;
		CHECK(from[i].sin_port == htons(PORT_ECHO) && (ntohl(from[i].sin_addr.s_addr) & 255) == 10 + (unsigned)k);
	}
	close(fd);
}

static void control(void)
{
	struct sockaddr_in sa = to("198.18.0.1", PORT_ECHO);
	char buf[10], room[200];
	struct iovec v = { buf, sizeof buf };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room };
	struct in_pktinfo info;
	int fd = dgram(0), one = 1, found = 0;

	CHECK(setsockopt(fd, IPPROTO_IP, IP_PKTINFO, &one, sizeof one) == 0);
	CHECK(setsockopt(fd, IPPROTO_IP, IP_RECVTOS, &one, sizeof one) == 0);
	CHECK(sendto(fd, "a", 1, 0, (struct sockaddr *)&sa, sizeof sa) == 1);
	CHECK(setsockopt(fd, IPPROTO_IP, IP_RECVTTL, &one, sizeof one) == 0);
	CHECK(setsockopt(fd, IPPROTO_UDP, 104 /* UDP_GRO */, &one, sizeof one) == -1 && errno == ENOPROTOOPT);
	CHECK(recvmsg(fd, &m, 0) == 1);
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c)) {
		CHECK(c->cmsg_level == IPPROTO_IP);
		found |= 1 << c->cmsg_type;
		if (c->cmsg_type != IP_PKTINFO)
			continue;
		memcpy(&info, CMSG_DATA(c), sizeof info);
		CHECK(info.ipi_addr.s_addr == to("198.18.0.2", 0).sin_addr.s_addr);
	}
	CHECK(found == (1 << IP_PKTINFO | 1 << IP_TOS | 1 << IP_TTL) && !m.msg_flags);
	/* Room for one and a half. */
	CHECK(sendto(fd, "b", 1, 0, (struct sockaddr *)&sa, sizeof sa) == 1);
	m.msg_controllen = CMSG_SPACE(sizeof info) + CMSG_LEN(2);
	CHECK(recvmsg(fd, &m, 0) == 1 && m.msg_flags == MSG_CTRUNC);
	CHECK(m.msg_controllen == CMSG_SPACE(sizeof info) + CMSG_LEN(2));
	/* A source that the datagram was received at needs no question. */
	m = (struct msghdr){ .msg_name = &sa, .msg_namelen = sizeof sa, .msg_iov = &v, .msg_iovlen = 1,
			     .msg_control = room, .msg_controllen = CMSG_SPACE(sizeof info) };
	*CMSG_FIRSTHDR(&m) = (struct cmsghdr){ CMSG_LEN(sizeof info), IPPROTO_IP, IP_PKTINFO };
	info.ipi_spec_dst = info.ipi_addr;
	memcpy(CMSG_DATA(CMSG_FIRSTHDR(&m)), &info, sizeof info);
	CHECK(sendmsg(fd, &m, 0) == sizeof buf);
	CMSG_FIRSTHDR(&m)->cmsg_len = 3;
	CHECK(sendmsg(fd, &m, 0) == -1 && errno == EINVAL);
	close(fd);
}

static void failures(void)
{
	char *gone = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fd = dgram(PORT_REFUSED), err;
	socklen_t len = sizeof err;
	struct pollfd p = { fd, POLLIN, 0 };
	char c;

	CHECK(send(fd, "x", 1, 0) == 1);
	CHECK(poll(&p, 1, 5000) == 1 && p.revents == POLLERR);
	CHECK(getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &len) == 0 && err == ECONNREFUSED);
	CHECK(send(fd, "x", 1, 0) == 1);
	CHECK(recv(fd, &c, 1, 0) == -1 && errno == ECONNREFUSED);
	close(fd);
	fd = dgram(PORT_ECHO);
	CHECK(send(fd, gone, 10, 0) == -1 && errno == EFAULT);
	CHECK(send(fd, gone, 40000, 0) == -1 && errno == EFAULT);
	CHECK(send(fd, "fine", 4, 0) == 4);
	CHECK(recv(fd, gone, 10, 0) == -1 && errno == EFAULT);
	CHECK(recv(fd, &c, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN); /* lost, as in the kernel */
	CHECK(shutdown(fd, SHUT_WR) == 0);
	CHECK(send(fd, "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE);
	close(fd);
	munmap(gone, 4096);
}

/* Many datagrams into small rings and windows: nobody waits for ever, and the
 * one who does not read holds up nobody. */
static void flood(void)
{
	static uint8_t buf[9000];
	int lazy = dgram(PORT_ECHO), fd = dgram(PORT_ECHO), got = 0;
	struct pollfd p = { fd, POLLIN, 0 };

	for (int i = 0; i < 300; i++)
		CHECK(send(lazy, buf, 1000, 0) == 1000);
	while (got < 2000) {
		ssize_t n = 13 * got++ % sizeof buf;

		CHECK(send(fd, buf, n, 0) == n);
		CHECK(poll(&p, 1, 5000) == 1 && recv(fd, buf, sizeof buf, 0) == n);
	}
	CHECK(recv(lazy, buf, sizeof buf, 0) == 1000);
	close(lazy);
	close(fd);
}

static void *sender(void *arg)
{
	int fd = *(int *)arg;

	for (int i = 0; i < 200; i++)
		CHECK(send(fd, "0123456789", i % 10, 0) == i % 10);
	return NULL;
}

/* Threads that share a socket, and a poller that takes it over. */
static void threads(void)
{
	int fd = dgram(PORT_ECHO), ep = epoll_create1(0), got = 0;
	struct epoll_event e = { .events = EPOLLIN, .data.fd = fd };
	pthread_t t[3];
	char buf[20];

	for (int i = 0; i < 3; i++)
		CHECK(!pthread_create(&t[i], NULL, sender, &fd));
	CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e) == 0);
	while (got < 600) {
		CHECK(epoll_wait(ep, &e, 1, 5000) == 1);
		while (recv(fd, buf, sizeof buf, MSG_DONTWAIT) >= 0)
			got++;
	}
	for (int i = 0; i < 3; i++)
		pthread_join(t[i], NULL);
	close(ep);
	close(fd);
}

/* A broken datagram ends the session; the sockets come back in the next one,
 * the bound one under its port. */
static void lost(void)
{
	struct sockaddr_in sa = to("198.18.0.2", 4321), now;
	int server = dgram(0), fd = dgram(PORT_RESET), ep = epoll_create1(0);
	struct epoll_event e = { .events = EPOLLIN, .data.fd = server };
	socklen_t len = sizeof now;
	char c;

	CHECK(bind(server, (struct sockaddr *)&sa, sizeof sa) == 0);
	CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, server, &e) == 0);
	CHECK(epoll_wait(ep, &e, 1, 10) == 0);
	CHECK(send(fd, "x", 1, 0) == 1);
	for (int i = 0; i < 100 && (recv(fd, &c, 1, MSG_DONTWAIT) != -1 || errno != EAGAIN); i++)
		usleep(10000);
	CHECK(epoll_wait(ep, &e, 1, 2500) == 0);
	CHECK(getsockname(server, (struct sockaddr *)&now, &len) == 0 && now.sin_port == htons(4321));
	CHECK(send_to(server, "198.18.0.1", PORT_ECHO, "again", 5) == 5);
	CHECK(epoll_wait(ep, &e, 1, 5000) == 1 && e.data.fd == server);
	CHECK(recv(server, &c, 1, 0) == 1 && c == 'a');
	fake_lose();
	CHECK(epoll_wait(ep, &e, 1, 2500) == 0);
	CHECK(send_to(server, "198.18.0.1", PORT_ECHO, "back", 4) == 4);
	CHECK(epoll_wait(ep, &e, 1, 5000) == 1 && recv(server, &c, 1, 0) == 1 && c == 'b');
	close(fd);
	close(server);
	close(ep);
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*run)(void);
	} tests[] = {
		{ "messages", messages }, { "unconnected", unconnected }, { "control", control },
		{ "failures", failures }, { "flood", flood }, { "threads", threads }, { "lost", lost },
	};

	signal(SIGPIPE, SIG_IGN);
	alarm(240);
	fake_start(2, PNO_MIN_RING_SIZE * 2);
	for (size_t i = 0; i < sizeof tests / sizeof tests[0]; i++) {
		if (argc > 1 && strcmp(argv[1], tests[i].name))
			continue;
		tests[i].run();
		printf("ok udp/%s\n", tests[i].name);
		fflush(stdout);
	}
	fake_stop();
	return 0;
}
