/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The socket calls over a DPU double in the same process: this program is
 * linked with the shim, so socket(), send(), epoll_wait() … are the shim's.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fake_dpu.h"

static struct sockaddr_in to(uint16_t port)
{
	struct sockaddr_in sa = { .sin_family = AF_INET, .sin_port = htons(port) };

	inet_pton(AF_INET, "198.18.0.1", &sa.sin_addr);
	return sa;
}

static int serve(uint16_t *port)
{
	struct sockaddr_in sa = to(0);
	socklen_t len = sizeof sa;
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	CHECK(bind(fd, (struct sockaddr *)&sa, sizeof sa) == 0);
	CHECK(listen(fd, 16) == 0);
	CHECK(getsockname(fd, (struct sockaddr *)&sa, &len) == 0 && sa.sin_port);
	*port = ntohs(sa.sin_port);
	return fd;
}

static void echo(void)
{
	char buf[100];
	int fd = fake_connect(PORT_ECHO), n;
	struct sockaddr_in sa;
	socklen_t len = sizeof sa;

	CHECK(getpeername(fd, (struct sockaddr *)&sa, &len) == 0 && sa.sin_port == htons(PORT_ECHO));
	CHECK(send(fd, "abcdef", 6, 0) == 6);
	CHECK(recv(fd, buf, 3, MSG_WAITALL) == 3 && !memcmp(buf, "abc", 3));
	CHECK(recv(fd, buf, 2, MSG_PEEK) == 2 && !memcmp(buf, "de", 2));
	CHECK(ioctl(fd, FIONREAD, &n) == 0 && n == 3);
	CHECK(read(fd, buf, sizeof buf) == 3 && !memcmp(buf, "def", 3));
	CHECK(recv(fd, buf, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN);
	CHECK(shutdown(fd, SHUT_WR) == 0);
	CHECK(read(fd, buf, sizeof buf) == 0);
	CHECK(send(fd, "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE);
	CHECK(close(fd) == 0);
	CHECK(close(fd) == -1 && errno == EBADF);
}

static void failures(void)
{
	struct sockaddr_in sa = to(PORT_REFUSED);
	struct pollfd p;
	char c;
	int fd = socket(AF_INET, SOCK_STREAM, 0), err;
	socklen_t len = sizeof err;

	CHECK(connect(fd, (struct sockaddr *)&sa, sizeof sa) == -1 && errno == ECONNREFUSED);
	close(fd);

	fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	CHECK(connect(fd, (struct sockaddr *)&sa, sizeof sa) == -1 && errno == EINPROGRESS);
	p = (struct pollfd){ fd, POLLOUT, 0 };
	CHECK(poll(&p, 1, 5000) == 1 && p.revents == (POLLOUT | POLLERR | POLLHUP));
	CHECK(getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &len) == 0 && err == ECONNREFUSED);
	/* Another attempt on the same socket; first it is told that this one is over. */
	sa = to(PORT_ECHO);
	CHECK(connect(fd, (struct sockaddr *)&sa, sizeof sa) == -1 && errno == ECONNABORTED);
	CHECK(connect(fd, (struct sockaddr *)&sa, sizeof sa) == -1 && errno == EINPROGRESS);
	CHECK(poll(&p, 1, 5000) == 1 && p.revents == POLLOUT);
	CHECK(connect(fd, (struct sockaddr *)&sa, sizeof sa) == 0);
	CHECK(connect(fd, (struct sockaddr *)&sa, sizeof sa) == -1 && errno == EISCONN);
	close(fd);

	fd = fake_connect(PORT_RESET);
	CHECK(send(fd, "x", 1, 0) == 1);
	CHECK(recv(fd, &c, 1, 0) == -1 && errno == ECONNRESET);
	CHECK(recv(fd, &c, 1, 0) == 0);
	CHECK(send(fd, "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE);
	close(fd);
}

/* Received data larger than the ring, with another socket that does not read:
 * what it holds is spilled and must not stop the first. */
static void bulk(void)
{
	int lazy = fake_connect(PORT_CHARGEN), fd = fake_connect(PORT_CHARGEN);
	static uint8_t buf[50000];
	uint64_t got = 0;
	ssize_t n;

	usleep(20000);
	while ((n = read(fd, buf, sizeof buf)) > 0) {
		for (ssize_t i = 0; i < n; i++)
			CHECK(buf[i] == pattern(got + i));
		got += n;
	}
	CHECK(n == 0 && got == CHARGEN_BYTES);
	close(fd);
	for (got = 0; (n = read(lazy, buf, sizeof buf)) > 0; got += n)
		for (ssize_t i = 0; i < n; i++)
			CHECK(buf[i] == pattern(got + i));
	CHECK(n == 0 && got == CHARGEN_BYTES);
	close(lazy);
}

static void *reader(void *arg)
{
	static uint8_t buf[30000];
	int fd = *(int *)arg;
	uint64_t got = 0;
	ssize_t n;

	while ((n = read(fd, buf, sizeof buf)) > 0) {
		for (ssize_t i = 0; i < n; i++)
			CHECK(buf[i] == pattern(got + i));
		got += n;
	}
	return (void *)got;
}

/* Two threads on one socket: one writes (blocking, through a full window), one
 * reads what comes back. */
static void both_ways(void)
{
	uint64_t total = 4u << 20, sent = 0;
	int fd = fake_connect(PORT_ECHO);
	pthread_t t;
	void *got;

	CHECK(!pthread_create(&t, NULL, reader, &fd));
	while (sent < total) {
		uint8_t buf[7001];
		size_t n = total - sent < sizeof buf ? total - sent : sizeof buf;
		ssize_t k;

		for (size_t i = 0; i < n; i++)
			buf[i] = pattern(sent + i);
		k = write(fd, buf, n);
		CHECK(k > 0);
		sent += k;
	}
	shutdown(fd, SHUT_WR);
	pthread_join(t, &got);
	CHECK((uint64_t)got == total);
	close(fd);
}

static void file(void)
{
	int in = memfd_create("file", 0), fd = fake_connect(PORT_ECHO);
	uint8_t buf[100000], back[100000];
	off_t off = 1000;
	size_t got = 0;

	for (size_t i = 0; i < sizeof buf; i++)
		buf[i] = pattern(i);
	CHECK(write(in, buf, sizeof buf) == (ssize_t)sizeof buf);
	CHECK(lseek(in, 0, SEEK_CUR) == sizeof buf);
	CHECK(sendfile(fd, in, &off, 50000) == 50000 && off == 51000);
	CHECK(lseek(in, 0, SEEK_CUR) == sizeof buf);
	CHECK(lseek(in, 90000, SEEK_SET) == 90000);
	CHECK(sendfile(fd, in, NULL, 50000) == 10000);
	CHECK(lseek(in, 0, SEEK_CUR) == sizeof buf);
	CHECK(sendfile(fd, in, NULL, 50000) == 0);
	while (got < 60000) {
		ssize_t n = recv(fd, back + got, sizeof back - got, 0);

		CHECK(n > 0);
		got += n;
	}
	CHECK(got == 60000 && !memcmp(back, buf + 1000, 50000) && !memcmp(back + 50000, buf + 90000, 10000));
	close(fd);
	close(in);
}

static int wait_one(int ep, struct epoll_event *e, int ms)
{
	memset(e, 0, sizeof *e);
	return epoll_wait(ep, e, 1, ms);
}

static void epolls(void)
{
	int ep = epoll_create1(0), fd = fake_connect(PORT_ECHO), pipes[2];
	struct epoll_event e = { .events = EPOLLIN | EPOLLET | EPOLLRDHUP, .data.u64 = 77 };
	char buf[10];

	CHECK(pipe(pipes) == 0);
	CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e) == 0);
	CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e) == -1 && errno == EEXIST);
	CHECK(wait_one(ep, &e, 0) == 0);
	CHECK(send(fd, "ab", 2, 0) == 2);
	CHECK(wait_one(ep, &e, 5000) == 1 && e.events == EPOLLIN && e.data.u64 == 77);
	CHECK(wait_one(ep, &e, 0) == 0); /* edge: said once */
	e = (struct epoll_event){ .events = EPOLLIN | EPOLLOUT, .data.u64 = 78 };
	CHECK(epoll_ctl(ep, EPOLL_CTL_MOD, fd, &e) == 0);
	for (int i = 0; i < 3; i++) /* level: said while it lasts */
		CHECK(wait_one(ep, &e, 0) == 1 && e.events == (EPOLLIN | EPOLLOUT) && e.data.u64 == 78);
	CHECK(recv(fd, buf, sizeof buf, 0) == 2);
	CHECK(wait_one(ep, &e, 0) == 1 && e.events == EPOLLOUT);
	e = (struct epoll_event){ .events = EPOLLIN | EPOLLONESHOT, .data.u64 = 79 };
	CHECK(epoll_ctl(ep, EPOLL_CTL_MOD, fd, &e) == 0);
	CHECK(send(fd, "c", 1, 0) == 1);
	CHECK(wait_one(ep, &e, 5000) == 1 && e.data.u64 == 79);
	CHECK(send(fd, "d", 1, 0) == 1);
	CHECK(wait_one(ep, &e, 20) == 0);
	/* A kernel descriptor in the same set. */
	e = (struct epoll_event){ .events = EPOLLIN, .data.u64 = 80 };
	CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, pipes[0], &e) == 0);
	CHECK(write(pipes[1], "x", 1) == 1);
	CHECK(wait_one(ep, &e, 5000) == 1 && e.data.u64 == 80);
	CHECK(epoll_ctl(ep, EPOLL_CTL_DEL, pipes[0], NULL) == 0);
	e = (struct epoll_event){ .events = EPOLLRDHUP, .data.u64 = 81 };
	CHECK(epoll_ctl(ep, EPOLL_CTL_MOD, fd, &e) == 0);
	shutdown(fd, SHUT_WR);
	CHECK(wait_one(ep, &e, 5000) == 1 && (e.events & EPOLLRDHUP) && (e.events & EPOLLHUP));
	CHECK(epoll_ctl(ep, EPOLL_CTL_DEL, fd, NULL) == 0);
	CHECK(epoll_ctl(ep, EPOLL_CTL_DEL, fd, NULL) == -1 && errno == ENOENT);
	close(fd);
	close(ep);
	close(pipes[0]);
	close(pipes[1]);
}

static void accepts(void)
{
	uint16_t port;
	int l = serve(&port), ep = epoll_create1(0), fd;
	struct epoll_event e = { .events = EPOLLIN, .data.fd = l };
	struct sockaddr_in sa;
	socklen_t len = sizeof sa;
	char buf[10];

	CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, l, &e) == 0);
	CHECK(fcntl(l, F_SETFL, O_NONBLOCK) == 0);
	CHECK(accept(l, NULL, NULL) == -1 && errno == EAGAIN);
	for (int i = 0; i < 100; i++) {
		fake_dial(port);
		CHECK(wait_one(ep, &e, 5000) == 1 && e.data.fd == l);
		fd = accept4(l, (struct sockaddr *)&sa, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);
		CHECK(fd >= 0 && len == sizeof sa && sa.sin_addr.s_addr == inet_addr("198.18.0.1"));
		CHECK(fcntl(fd, F_GETFL) & O_NONBLOCK);
		CHECK(fcntl(fd, F_GETFD) & FD_CLOEXEC);
		CHECK(recv(fd, buf, sizeof buf, 0) == 5 && !memcmp(buf, "hello", 5));
		if (i % 2) {
			int twin = dup(fd);

			CHECK(close(fd) == 0);
			CHECK(send(twin, "x", 1, 0) == 1);
			fd = twin;
		}
		CHECK(close(fd) == 0);
	}
	/* Taken out and put back at once, as nginx does. */
	CHECK(epoll_ctl(ep, EPOLL_CTL_DEL, l, NULL) == 0);
	CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, l, &e) == 0);
	fake_dial(port);
	CHECK(wait_one(ep, &e, 5000) == 1);
	CHECK((fd = accept(l, NULL, NULL)) >= 0);
	close(fd);
	/* Taken out, and back only later. */
	CHECK(epoll_ctl(ep, EPOLL_CTL_DEL, l, NULL) == 0);
	CHECK(wait_one(ep, &e, 30) == 0);
	e = (struct epoll_event){ .events = EPOLLIN, .data.fd = l };
	CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, l, &e) == 0);
	CHECK(wait_one(ep, &e, 30) == 0);
	fake_dial(port);
	CHECK(wait_one(ep, &e, 5000) == 1);
	CHECK((fd = accept(l, NULL, NULL)) >= 0);
	close(fd);
	close(ep);
	close(l);
}

/* A socket that moves from one thread's epoll to another's, in mid-stream. */
static void moves(void)
{
	int a = epoll_create1(0), b = epoll_create1(0), fd = fake_connect(PORT_ECHO), at = a;
	struct epoll_event e = { .events = EPOLLIN, .data.fd = fd };
	uint64_t sent = 0, got = 0;

	CHECK(epoll_ctl(a, EPOLL_CTL_ADD, fd, &e) == 0);
	for (int i = 0; i < 300; i++) {
		uint8_t buf[3000];

		for (size_t k = 0; k < sizeof buf; k++)
			buf[k] = pattern(sent + k);
		CHECK(send(fd, buf, sizeof buf, 0) == sizeof buf);
		sent += sizeof buf;
		CHECK(epoll_ctl(at, EPOLL_CTL_DEL, fd, NULL) == 0);
		at = at == a ? b : a;
		e.events = EPOLLIN;
		CHECK(epoll_ctl(at, EPOLL_CTL_ADD, fd, &e) == 0);
		while (got < sent) {
			ssize_t n;

			CHECK(wait_one(at, &e, 5000) == 1);
			n = recv(fd, buf, sizeof buf, MSG_DONTWAIT);
			CHECK(n > 0);
			for (ssize_t k = 0; k < n; k++)
				CHECK(buf[k] == pattern(got + k));
			got += n;
		}
	}
	close(fd);
	close(a);
	close(b);
}

static void selects(void)
{
	int fd = fake_connect(PORT_ECHO), pipes[2];
	struct timeval tv = { .tv_usec = 10000 };
	fd_set r, w;
	char c;

	CHECK(pipe(pipes) == 0);
	FD_ZERO(&r);
	FD_SET(fd, &r);
	FD_SET(pipes[0], &r);
	CHECK(select(64, &r, NULL, NULL, &tv) == 0);
	CHECK(send(fd, "x", 1, 0) == 1);
	FD_SET(fd, &r);
	FD_SET(pipes[0], &r);
	FD_ZERO(&w);
	FD_SET(fd, &w);
	CHECK(select(64, &r, &w, NULL, NULL) >= 1 && FD_ISSET(fd, &w) && !FD_ISSET(pipes[0], &r));
	CHECK(recv(fd, &c, 1, 0) == 1);
	CHECK(write(pipes[1], "x", 1) == 1);
	FD_ZERO(&r);
	FD_SET(fd, &r);
	FD_SET(pipes[0], &r);
	CHECK(select(64, &r, NULL, NULL, NULL) == 1 && FD_ISSET(pipes[0], &r) && !FD_ISSET(fd, &r));
	close(fd);
	close(pipes[0]);
	close(pipes[1]);
}

static void options(void)
{
	int fd = fake_connect(PORT_ECHO), v = 1;
	socklen_t len = sizeof v;

	CHECK(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &v, sizeof v) == 0);
	v = 0;
	CHECK(getsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &v, &len) == 0 && v == 1);
	CHECK(getsockopt(fd, SOL_SOCKET, SO_TYPE, &v, &len) == 0 && v == SOCK_STREAM);
	CHECK(getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &v, &len) == 0 && v == 0);
	/* What the DPU refuses is refused. */
	CHECK(setsockopt(fd, IPPROTO_IP, IP_TOS, &v, sizeof v) == -1 && errno == EOPNOTSUPP);
	CHECK(setsockopt(fd, IPPROTO_TCP, 9999, &v, sizeof v) == -1 && errno == ENOPROTOOPT);
	close(fd);
}

/* A connection can be dissolved and the socket used again; one that is dead
 * stays what it was. */
static void again(void)
{
	struct sockaddr_in sa = to(PORT_ECHO);
	struct sockaddr none = { .sa_family = AF_UNSPEC };
	int fd = fake_connect(PORT_ECHO), err, on = 1;
	socklen_t len = sizeof err;
	char c;

	CHECK(connect(fd, &none, sizeof none) == 0);
	CHECK(getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &len) == 0 && err == ECONNRESET);
	CHECK(recv(fd, &c, 1, 0) == -1 && errno == ENOTCONN);
	CHECK(connect(fd, (struct sockaddr *)&sa, 3) == -1 && errno == EINVAL);
	sa.sin_family = AF_INET6;
	CHECK(connect(fd, (struct sockaddr *)&sa, sizeof sa) == -1 && errno == EAFNOSUPPORT);
	sa.sin_family = AF_INET;
	CHECK(sendto(fd, "x", 1, MSG_NOSIGNAL, NULL, 0) == -1 && errno == EPIPE);
	CHECK(connect(fd, (struct sockaddr *)&sa, sizeof sa) == 0);
	CHECK(send(fd, "y", 1, 0) == 1 && recv(fd, &c, 1, 0) == 1 && c == 'y');
	CHECK(ioctl(fd, FIOASYNC, &on) == -1 && errno == ENOTTY);
	close(fd);
	fd = socket(AF_INET, SOCK_STREAM, 0);
	CHECK(sendto(fd, "z", 1, MSG_FASTOPEN, (struct sockaddr *)&sa, sizeof sa) == 1);
	CHECK(recv(fd, &c, 1, 0) == 1 && c == 'z');
	close(fd);
	fd = fake_connect(PORT_RESET);
	CHECK(send(fd, "x", 1, 0) == 1);
	while (recv(fd, &c, 1, MSG_PEEK | MSG_DONTWAIT) < 0 && errno == EAGAIN)
		usleep(1000);
	CHECK(connect(fd, (struct sockaddr *)&sa, sizeof sa) == -1 && errno == EISCONN);
	close(fd);
}

static void *blocked_reader(void *arg)
{
	char c;

	return (void *)recv(*(int *)arg, &c, 1, 0);
}

/* Four threads blocked on four sockets of one channel, and wakers. */
static void sleepers(void)
{
	int fd[4];
	pthread_t t[4];

	for (int round = 0; round < 200; round++) {
		for (int i = 0; i < 4; i++) {
			fd[i] = fake_connect(PORT_ECHO);
			CHECK(!pthread_create(&t[i], NULL, blocked_reader, &fd[i]));
		}
		for (int i = 3; i >= 0; i--)
			CHECK(send(fd[i], "x", 1, 0) == 1);
		for (int i = 0; i < 4; i++) {
			void *rc;

			pthread_join(t[i], &rc);
			CHECK(rc == (void *)1);
			close(fd[i]);
		}
	}
}

/* The child has no session yet: closing what it inherited must not hurt. */
static void forks(void)
{
	int fd = fake_connect(PORT_ECHO);
	char c;
	pid_t pid = fork();

	CHECK(pid >= 0);
	if (!pid) {
		close(fd);
		_exit(0);
	}
	CHECK(send(fd, "x", 1, 0) == 1);
	CHECK(recv(fd, &c, 1, 0) == 1 && c == 'x');
	close(fd);
}

/* Programs that close what they did not open do not reach the shim's own. */
static void own_descriptors(void)
{
	int fd = fake_connect(PORT_ECHO), high = fcntl(fd, F_DUPFD, 200);
	char c;

	CHECK(high >= 200);
	for (int i = 300; i < 20000; i++)
		close(i);
	CHECK(send(high, "x", 1, 0) == 1 && recv(fd, &c, 1, 0) == 1);
	CHECK(close_range(200, ~0u, 0) == 0);
	CHECK(fcntl(high, F_GETFD) == -1 && errno == EBADF);
	CHECK(send(fd, "x", 1, 0) == 1 && recv(fd, &c, 1, 0) == 1);
	closefrom(200);
	CHECK(send(fd, "x", 1, 0) == 1 && recv(fd, &c, 1, 0) == 1);
	close(fd);
}

static void lost(void)
{
	int fd = fake_connect(PORT_ECHO), ep = epoll_create1(0);
	struct epoll_event e = { .events = EPOLLIN };
	char c;

	CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e) == 0);
	fake_violate();
	CHECK(wait_one(ep, &e, 5000) == 1 && (e.events & EPOLLERR) && (e.events & EPOLLHUP));
	CHECK(recv(fd, &c, 1, 0) == -1 && errno == ECONNRESET);
	close(fd);
	close(ep);
}

/* The DPU goes and comes back: connections are reset, the listener returns by
 * itself under its port. */
static void revival(void)
{
	uint16_t port;
	int l = serve(&port), ep = epoll_create1(0), fd = fake_connect(PORT_ECHO);
	struct epoll_event e = { .events = EPOLLIN, .data.fd = l };
	char buf[10];

	CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, l, &e) == 0);
	e.data.fd = fd;
	CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e) == 0);
	CHECK(wait_one(ep, &e, 10) == 0);
	fake_lose();
	CHECK(wait_one(ep, &e, 5000) == 1 && e.data.fd == fd && (e.events & EPOLLERR));
	CHECK(recv(fd, buf, 1, 0) == -1 && errno == ECONNRESET);
	close(fd);
	for (int i = 0; i < 40 && wait_one(ep, &e, 100) == 0; i++)
		if (i == 25)
			fake_dial(port);
	CHECK(e.data.fd == l);
	CHECK((fd = accept(l, NULL, NULL)) >= 0);
	CHECK(recv(fd, buf, sizeof buf, 0) == 5);
	close(fd);
	close(l);
	close(ep);
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*run)(void);
	} tests[] = {
		{ "echo", echo },         { "failures", failures }, { "bulk", bulk },
		{ "both ways", both_ways }, { "sendfile", file },   { "epoll", epolls },
		{ "accept", accepts },    { "moves", moves },       { "select", selects },
		{ "options", options },   { "again", again }, { "sleepers", sleepers }, { "fork", forks },
		{ "own descriptors", own_descriptors }, { "lost", lost },
		{ "revival", revival },
	};

	signal(SIGPIPE, SIG_IGN);
	alarm(240);
	fake_start(2, PNO_MIN_RING_SIZE * 2);
	for (size_t i = 0; i < sizeof tests / sizeof tests[0]; i++) {
		if (argc > 1 && strcmp(argv[1], tests[i].name))
			continue;
		tests[i].run();
		printf("ok calls/%s\n", tests[i].name);
		fflush(stdout);
	}
	fake_stop();
	return 0;
}
