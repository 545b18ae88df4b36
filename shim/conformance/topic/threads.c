/* SPDX-License-Identifier: Apache-2.0 */

/*
 * conf: threads
 *
 * Threads that share sockets and epoll instances: sockets that move between
 * threads, an instance that several wait on, one that gets sockets while it is
 * waited on, and calls that wait while another thread shuts, closes or
 * replaces what they wait for.
 */
#include "conf.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/syscall.h>

/* A call made by another thread. */
static struct job {
	pthread_t thread;
	long (*fn)(struct job *);
	int fd, other;
	long result;
	int err;
	_Atomic pid_t tid;
	char buf[64];
} jobs[8];

static void *work(void *arg)
{
	struct job *j = arg;

	atomic_store(&j->tid, (pid_t)syscall(SYS_gettid));
	errno = 0;
	j->result = j->fn(j);
	j->err = errno;
	return NULL;
}

static char state_of(pid_t tid)
{
	char path[64], line[256] = "", *p;
	FILE *f;

	snprintf(path, sizeof path, "/proc/self/task/%d/stat", tid);
	f = fopen(path, "r");
	if (!f)
		return '?';
	if (!fgets(line, sizeof line, f))
		line[0] = 0;
	fclose(f);
	p = strrchr(line, ')');
	return p ? p[2] : '?';
}

/* Starts a call, and returns when it sleeps, or seems to. */
static struct job *start(struct job *j, long (*fn)(struct job *), int fd, int other)
{
	int asleep = 0;

	*j = (struct job){ .fn = fn, .fd = fd, .other = other };
	need(pthread_create(&j->thread, NULL, work, j) == 0, "pthread_create");
	for (int i = 0; i < 500 && asleep < 20; i++) {
		pid_t tid = atomic_load(&j->tid);

		asleep = tid && state_of(tid) == 'S' ? asleep + 1 : 0;
		nap(1);
	}
	return j;
}

static long finish(struct job *j)
{
	pthread_join(j->thread, NULL);
	errno = j->err;
	return j->result;
}

static long do_recv(struct job *j)
{
	return recv(j->fd, j->buf, sizeof j->buf, 0);
}

static long do_accept(struct job *j)
{
	int s = accept(j->fd, NULL, NULL);

	if (s < 0)
		return -1;
	close(s);
	return 0;
}

static long do_poll(struct job *j)
{
	struct pollfd p = { j->fd, POLLIN, 0 };
	int n = poll(&p, 1, 5000);

	return n < 0 ? -1 : p.revents;
}

static long do_epoll(struct job *j)
{
	struct epoll_event ev;
	int n = epoll_wait(j->fd, &ev, 1, 5000);

	return n <= 0 ? n : (long)ev.data.u32;
}

static long do_send(struct job *j)
{
	static char data[1 << 20];
	long sum = 0;

	for (int i = 0; i < 16; i++) {
		long n = send(j->fd, data, sizeof data, MSG_NOSIGNAL);

		if (n < 0)
			return -1;
		sum += n;
		if (n < (long)sizeof data)
			return 1;
	}
	return sum == 16 << 20 ? 0 : 2;
}

static int watch(int ep, int fd, uint32_t events, uint32_t data)
{
	struct epoll_event ev = { .events = events, .data.u32 = data };

	return epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev);
}

static void moves(void)
{
	int c, s;

	/* A socket used by one thread after the other, and by two at once. */
	pair(AF_INET, &c, &s);
	for (int i = 0; i < 3; i++) {
		struct job *j = start(&jobs[0], do_recv, s, 0);

		write_all(c, "abc", 3);
		R(finish(j));
		write_all(c, "de", 2);
		R(recv(s, jobs[0].buf, 64, 0));
	}
	start(&jobs[0], do_recv, s, 0);
	start(&jobs[1], do_recv, c, 0);
	write_all(c, "1", 1);
	R(finish(&jobs[0]));
	write_all(s, "22", 2);
	R(finish(&jobs[1]));
	close(c), close(s);
}

static void shut_while_waiting(void)
{
	struct sockaddr_storage at;
	int c, s, l;

	pair(AF_INET, &c, &s);
	start(&jobs[0], do_recv, s, 0);
	R(shutdown(s, SHUT_RD));
	R(finish(&jobs[0]));
	close(c), close(s);

	pair(AF_INET, &c, &s);
	start(&jobs[0], do_recv, s, 0);
	R(shutdown(s, SHUT_RDWR));
	R(finish(&jobs[0]));
	close(c), close(s);

	pair(AF_INET, &c, &s);
	start(&jobs[0], do_recv, s, 0);
	close(c);
	R(finish(&jobs[0]));
	close(s);

	l = listener(AF_INET, &at);
	start(&jobs[0], do_accept, l, 0);
	R(shutdown(l, SHUT_RD));
	R(finish(&jobs[0]));
	close(l);

	pair(AF_INET, &c, &s);
	start(&jobs[0], do_poll, s, 0);
	R(shutdown(s, SHUT_RD));
	R(finish(&jobs[0]));
	start(&jobs[0], do_send, c, 0);
	R(shutdown(c, SHUT_WR));
	R(finish(&jobs[0]));
	close(c), close(s);
}

/* The kernel's file lives on while a call uses it: a close elsewhere does not
 * end the wait, what arrives does. */
static void closed_while_waiting(void)
{
	struct sockaddr_storage at;
	int c, s, l;

	pair(AF_INET, &c, &s);
	start(&jobs[0], do_recv, s, 0);
	R(close(s));
	R(send(c, "late", 4, MSG_NOSIGNAL));
	R(finish(&jobs[0]));
	close(c);

	l = listener(AF_INET, &at);
	start(&jobs[0], do_accept, l, 0);
	R(close(l));
	c = socket(AF_INET, SOCK_STREAM, 0);
	R(connect(c, SA(at), addr_len(&at)));
	R(finish(&jobs[0]));
	close(c);
}

static void connects_meet_accepts(void)
{
	struct sockaddr_storage at;
	int l = listener(AF_INET, &at), c;

	/* Accept waits in one thread, connect is made in another. */
	for (int i = 0; i < 3; i++) {
		start(&jobs[0], do_accept, l, 0);
		c = FD(dial(&at));
		R(finish(&jobs[0]));
		close(c);
	}
	/* Two wait, each gets one. */
	start(&jobs[0], do_accept, l, 0);
	start(&jobs[1], do_accept, l, 0);
	c = FD(dial(&at));
	close(c);
	c = FD(dial(&at));
	close(c);
	R(finish(&jobs[0]));
	R(finish(&jobs[1]));
	close(l);
}

static void shared_instance(void)
{
	int ep = epoll_create1(0), c[2], s[2], p[2];

	for (int i = 0; i < 2; i++)
		pair(AF_INET, &c[i], &s[i]);
	need(pipe(p) == 0, "pipe");
	/* It gets its first socket while it is waited on. */
	start(&jobs[0], do_epoll, ep, 0);
	write_all(c[0], "x", 1);
	R(watch(ep, s[0], EPOLLIN | EPOLLET, 7));
	R(finish(&jobs[0]));
	/* A pipe, and another socket. */
	start(&jobs[0], do_epoll, ep, 0);
	R(watch(ep, p[0], EPOLLIN | EPOLLET, 8));
	write_all(p[1], "x", 1);
	R(finish(&jobs[0]));
	start(&jobs[0], do_epoll, ep, 0);
	R(watch(ep, s[1], EPOLLIN | EPOLLET, 9));
	write_all(c[1], "x", 1);
	R(finish(&jobs[0]));
	/* Two threads wait; each event is for one of them. */
	start(&jobs[0], do_epoll, ep, 0);
	start(&jobs[1], do_epoll, ep, 0);
	write_all(c[0], "y", 1);
	write_all(c[1], "y", 1);
	R(finish(&jobs[0]) + finish(&jobs[1]));
	R(epoll_wait(ep, &(struct epoll_event){ 0 }, 1, 0));
	for (int i = 0; i < 2; i++)
		close(c[i]), close(s[i]), close(p[i]);
	close(ep);
}

static void instance_polled(void)
{
	int ep = epoll_create1(0), c, s;

	pair(AF_INET, &c, &s);
	R(watch(ep, s, EPOLLIN, 1));
	start(&jobs[0], do_poll, ep, 0);
	write_all(c, "x", 1);
	R(finish(&jobs[0]));
	close(c), close(s), close(ep);
}

/* dup2 onto a descriptor that another thread waits on: that goes on waiting
 * for what it was. */
static void replaced_while_waiting(void)
{
	int c, s, c2, s2;

	pair(AF_INET, &c, &s);
	pair(AF_INET, &c2, &s2);
	start(&jobs[0], do_recv, s, 0);
	need(dup2(s2, s) == s, "dup2");
	write_all(c2, "new", 3);
	write_all(c, "former", 6);
	R(finish(&jobs[0]));
	R(recv(s, jobs[0].buf, 64, 0));
	close(c), close(s), close(c2), close(s2);
}

static long hammer(struct job *j)
{
	char b[64];

	for (int i = 0; i < 200; i++) {
		if (send(j->fd, "ping", 4, 0) != 4 || recv(j->fd, b, 4, MSG_WAITALL) != 4)
			return -1;
	}
	return 200;
}

static long echo(struct job *j)
{
	char b[64];

	for (int i = 0; i < 200; i++) {
		if (recv(j->fd, b, 4, MSG_WAITALL) != 4 || send(j->fd, b, 4, 0) != 4)
			return -1;
	}
	return 200;
}

static void busy(void)
{
	int c[3], s[3];

	for (int i = 0; i < 3; i++) {
		pair(AF_INET, &c[i], &s[i]);
		jobs[2 * i] = (struct job){ .fn = hammer, .fd = c[i] };
		jobs[2 * i + 1] = (struct job){ .fn = echo, .fd = s[i] };
	}
	for (int i = 0; i < 6; i++)
		need(pthread_create(&jobs[i].thread, NULL, work, &jobs[i]) == 0, "pthread_create");
	for (int i = 0; i < 6; i++)
		R(finish(&jobs[i]));
	for (int i = 0; i < 3; i++)
		close(c[i]), close(s[i]);
}

/* A thread for each connection: many sleep, and the deadlines of one hold. */
static void many_wait(void)
{
	static struct job many[100];
	struct timeval tv = { .tv_usec = 200000 };
	int peers[100], c, s, woken = 0;
	struct pollfd p;

	for (int i = 0; i < 100; i++) {
		pair(AF_INET, &peers[i], &s);
		many[i] = (struct job){ .fn = do_recv, .fd = s };
		if (pthread_create(&many[i].thread, NULL, work, &many[i]))
			exit(1);
	}
	pair(AF_INET, &c, &s);
	setsockopt(c, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv);
	R(recv(c, &p, sizeof p, 0));
	p = (struct pollfd){ .fd = c, .events = POLLIN };
	R(poll(&p, 1, 200));
	for (int i = 0; i < 100; i++)
		write_all(peers[i], "x", 1);
	for (int i = 0; i < 100; i++) {
		pthread_join(many[i].thread, NULL);
		woken += many[i].result == 1;
		close(peers[i]), close(many[i].fd);
	}
	R(woken);
	close(c), close(s);
}

int main(void)
{
	SECTION("moves");
	moves();
	SECTION("many wait");
	many_wait();
	SECTION("shut while waiting");
	shut_while_waiting();
	SECTION("connects meet accepts");
	connects_meet_accepts();
	SECTION("shared instance");
	shared_instance();
	SECTION("instance polled");
	instance_polled();
	SECTION("busy");
	busy();
	SECTION("closed while waiting");
	closed_while_waiting();
	SECTION("replaced while waiting");
	replaced_while_waiting();
	return 0;
}
