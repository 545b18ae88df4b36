/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A server that makes each hot call often enough to count its instructions.
 *
 * The other side gets on only when it is told to (turn), so every call finds
 * the same state in every run: no spin, no sleep, no doorbell. callgrind counts
 * between the two requests of COUNT and writes what it has at report().
 */
#include <errno.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <valgrind/callgrind.h>

#define CONNS  16 /* as many clients as the peer was made with */
#define WARM   32 /* rounds before those that count */
#define ROUNDS 64

#define CHECK(c)                                                                          \
	do {                                                                              \
		if (!(c)) {                                                               \
			fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #c, strerror(errno)); \
			exit(1);                                                          \
		}                                                                         \
	} while (0)

static bool on;
static unsigned calls;

#define COUNT(expr)                                        \
	({                                                 \
		if (on) {                                  \
			calls++;                           \
			CALLGRIND_TOGGLE_COLLECT;          \
		}                                          \
		__typeof__(expr) rc_ = (expr);             \
		if (on)                                    \
			CALLGRIND_TOGGLE_COLLECT;          \
		rc_;                                       \
	})

static void report(const char *name)
{
	char text[100];

	snprintf(text, sizeof text, "%s*%u", name, calls);
	CALLGRIND_DUMP_STATS_AT(text);
	calls = 0;
}

/* Not by way of libc, whose calls are the shim's. */
static long kernel(long nr, long a, long b, long c)
{
	long rc;

	__asm__ volatile("syscall" : "=a"(rc) : "a"(nr), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
	return rc;
}

static void turn(void)
{
	char c = 0;
	long rc;

	CHECK(kernel(SYS_write, STDOUT_FILENO, (long)&c, 1) == 1);
	while ((rc = kernel(SYS_read, STDIN_FILENO, (long)&c, 1)) == -EINTR)
		;
	CHECK(rc == 1);
}

static char answer[103], request[200];
static const struct iovec two[] = { { answer, 39 }, { answer + 39, 64 } };
static const struct iovec into[] = { { request, 10 }, { request + 10, sizeof request - 10 } };
static struct msghdr out = { .msg_iov = (struct iovec *)two, .msg_iovlen = 2 };

enum in { RECV, READ, READV, RECVMSG };
enum out { SEND, WRITE, WRITEV, SENDMSG };

static const char *const in_names[] = { "recv 27 B", "read 27 B", "readv 27 B in 2", "recvmsg 27 B" };
static const char *const out_names[] = { "send 103 B", "write 103 B", "writev 103 B of 2", "sendmsg 103 B of 2" };

static ssize_t take(int fd, enum in how)
{
	struct msghdr m = { .msg_iov = (struct iovec *)into, .msg_iovlen = 1 };

	switch (how) {
	case RECV:
		return COUNT(recv(fd, request, sizeof request, 0));
	case READ:
		return COUNT(read(fd, request, sizeof request));
	case READV:
		return COUNT(readv(fd, into, 2));
	default:
		m.msg_iov = (struct iovec[]){ { request, sizeof request } };
		return COUNT(recvmsg(fd, &m, 0));
	}
}

static ssize_t give(int fd, enum out how)
{
	switch (how) {
	case SEND:
		return COUNT(send(fd, answer, sizeof answer, 0));
	case WRITE:
		return COUNT(write(fd, answer, sizeof answer));
	case WRITEV:
		return COUNT(writev(fd, two, 2));
	default:
		return COUNT(sendmsg(fd, &out, 0));
	}
}

static int ep;
static int conn[CONNS];
static struct epoll_event event[CONNS];

/* Which call of a round counts. */
enum which { NONE, POLL, IN, OUT, AGAIN, MODIFY };

/* Everybody who has asked gets an answer; the first width of them are let ask. */
static void round_of(int width, enum which which, enum in how, enum out with)
{
	int n;

	turn();
	on = which == POLL;
	n = COUNT(epoll_wait(ep, event, width, -1));
	on = false;
	CHECK(n == width);
	for (int i = 0; i < n; i++) {
		int fd = event[i].data.fd;

		on = which == IN;
		CHECK(take(fd, how) == 27);
		on = which == AGAIN;
		CHECK(COUNT(recv(fd, request, sizeof request, 0)) == -1 && errno == EAGAIN);
		on = which == MODIFY;
		CHECK(COUNT(epoll_ctl(ep, EPOLL_CTL_MOD, fd, &event[i])) == 0);
		on = which == OUT;
		CHECK(give(fd, with) == sizeof answer);
		on = false;
	}
}

static void measure(const char *name, int width, enum which which, enum in how, enum out with)
{
	for (int i = 0; i < WARM; i++)
		round_of(width, NONE, how, with);
	for (int i = 0; i < ROUNDS; i++)
		round_of(width, which, how, with);
	report(name);
}

/* The requests of those beyond the first width are read and left unanswered. */
static void narrow(int width)
{
	turn();
	CHECK(epoll_wait(ep, event, CONNS, -1) == CONNS);
	for (int i = 0; i < CONNS; i++) {
		CHECK(recv(conn[i], request, sizeof request, 0) == 27);
		if (i < width)
			CHECK(send(conn[i], answer, sizeof answer, 0) == sizeof answer);
	}
}

static int serve(void)
{
	struct sockaddr_in sa = { .sin_family = AF_INET, .sin_port = htons(80), .sin_addr = { htonl(0xc6120302) } };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);

	CHECK(bind(fd, (struct sockaddr *)&sa, sizeof sa) == 0);
	CHECK(listen(fd, CONNS) == 0);
	return fd;
}

static void take_in(int listener)
{
	struct sockaddr_in sa;
	socklen_t len;

	CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, listener, &(struct epoll_event){ .events = EPOLLIN }) == 0);
	turn(); /* takes the Subscribe: all clients connect, and ask */
	CHECK(epoll_wait(ep, event, CONNS, -1) >= 1);
	for (int i = 0; i < CONNS; i++) {
		len = sizeof sa;
		on = true;
		conn[i] = COUNT(accept4(listener, (struct sockaddr *)&sa, &len, SOCK_NONBLOCK));
		on = false;
		CHECK(conn[i] >= 0);
	}
	report("accept4");
	on = true;
	for (int i = 0; i < ROUNDS; i++)
		CHECK(COUNT(accept4(listener, (struct sockaddr *)&sa, &len, SOCK_NONBLOCK)) == -1 && errno == EAGAIN);
	report("accept4, nobody there");
	for (int i = 0; i < CONNS; i++)
		CHECK(COUNT(epoll_ctl(ep, EPOLL_CTL_ADD, conn[i], &(struct epoll_event){
			.events = EPOLLIN | EPOLLRDHUP | EPOLLET, .data.fd = conn[i] })) == 0);
	on = false;
	report("epoll_ctl ADD");
	CHECK(epoll_wait(ep, event, CONNS, -1) == CONNS);
	for (int i = 0; i < CONNS; i++) {
		CHECK(recv(conn[i], request, sizeof request, 0) == 27);
		CHECK(send(conn[i], answer, sizeof answer, 0) == sizeof answer);
	}
}

/* What is the kernel's must not be slow because of us. */
static void others(void)
{
	char c = 0;
	int pipes[2];

	CHECK(pipe(pipes) == 0);
	on = true;
	for (int i = 0; i < ROUNDS; i++)
		CHECK(COUNT(write(pipes[1], &c, 1)) == 1);
	report("write to a pipe");
	for (int i = 0; i < ROUNDS; i++)
		CHECK(COUNT(read(pipes[0], &c, 1)) == 1);
	report("read from a pipe");
	on = false;
}

int main(void)
{
	int listener;

	memset(answer, 'x', sizeof answer);
	memcpy(answer, "HTTP/1.1 200 OK\r\nContent-Length: 64\r\n\r\n", 39);
	ep = epoll_create1(0);
	CHECK(ep >= 0);
	listener = serve();
	take_in(listener);
	for (int i = 0; i < 4; i++)
		measure(in_names[i], CONNS, IN, i, SEND);
	for (int i = 0; i < 4; i++)
		measure(out_names[i], CONNS, OUT, RECV, i);
	measure("recv, nothing there", CONNS, AGAIN, RECV, SEND);
	measure("epoll_ctl MOD", CONNS, MODIFY, RECV, SEND);
	measure("epoll_wait, 16 events", CONNS, POLL, RECV, SEND);
	narrow(1);
	measure("epoll_wait, 1 event", 1, POLL, RECV, SEND);
	on = true;
	for (int i = 0; i < ROUNDS; i++)
		CHECK(COUNT(epoll_wait(ep, event, CONNS, 0)) == 0);
	report("epoll_wait, no event, no time");
	for (int i = 0; i < CONNS; i++)
		CHECK(COUNT(close(conn[i])) == 0);
	report("close");
	others();
	return 0;
}
