/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Threads that share sockets: several accept from one listener, several send
 * on one connection, one reads while another writes, sockets move from thread
 * to thread, and shutdown ends a wait.
 *
 * conf: threads
 */
#include "conf.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/epoll.h>

#define CLIENTS 40
#define THREADS 4
#define CHUNK 64
#define ROUNDS 200

static int shared;
static atomic_int served, failed;

static pthread_t start(void *(*fn)(void *), void *arg)
{
	pthread_t t;

	need(pthread_create(&t, NULL, fn, arg) == 0, "pthread_create");
	return t;
}

static void *serve(void *arg)
{
	char b[16];
	int s;

	(void)arg;
	while ((s = accept(shared, NULL, NULL)) >= 0) {
		ssize_t n = recv(s, b, sizeof b, 0);

		if (n == 1 && b[0] == 'q') {
			close(s);
			break;
		}
		if (n <= 0 || send(s, b, n, 0) != n)
			failed++;
		served++;
		close(s);
	}
	return NULL;
}

/* Every connection is served once, by any of the threads. */
static void acceptors(void)
{
	struct sockaddr_storage at;
	pthread_t t[THREADS];
	char b[16];
	int c, wrong = 0;

	shared = listener(AF_INET, &at);
	for (int i = 0; i < THREADS; i++)
		t[i] = start(serve, NULL);
	for (int i = 0; i < CLIENTS; i++) {
		c = dial(&at);
		write_all(c, "ping", 4);
		wrong += recv(c, b, sizeof b, MSG_WAITALL) != 4;
		close(c);
	}
	for (int i = 0; i < THREADS; i++) {
		c = dial(&at);
		write_all(c, "q", 1);
		close(c);
	}
	for (int i = 0; i < THREADS; i++)
		pthread_join(t[i], NULL);
	R(served);
	R(failed);
	R(wrong);
	close(shared);
}

static void *scribble(void *arg)
{
	char b[CHUNK];

	memset(b, 'a' + (int)(intptr_t)arg, sizeof b);
	for (int i = 0; i < ROUNDS; i++)
		if (send(shared, b, sizeof b, 0) != sizeof b)
			failed++;
	return NULL;
}

/* A send of a few bytes is not mixed with another's. */
static void senders(void)
{
	static char all[THREADS * ROUNDS * CHUNK];
	int counts[THREADS] = { 0 }, c, s, mixed = 0;
	pthread_t t[THREADS];

	failed = 0;
	pair(AF_INET, &c, &s);
	shared = c;
	for (int i = 0; i < THREADS; i++)
		t[i] = start(scribble, (void *)(intptr_t)i);
	R(recv(s, all, sizeof all, MSG_WAITALL));
	for (int i = 0; i < THREADS; i++)
		pthread_join(t[i], NULL);
	for (size_t i = 0; i < sizeof all; i += CHUNK) {
		for (int k = 1; k < CHUNK; k++)
			mixed += all[i + k] != all[i];
		if (all[i] >= 'a' && all[i] < 'a' + THREADS)
			counts[all[i] - 'a']++;
	}
	R(failed);
	R(mixed);
	for (int i = 0; i < THREADS; i++)
		R(counts[i]);
	close(c);
	close(s);
}

static void *drain(void *arg)
{
	static char b[1 << 16];
	uint64_t *sum = arg;
	ssize_t n;

	while ((n = recv(shared, b, sizeof b, 0)) > 0)
		for (ssize_t i = 0; i < n; i++)
			*sum = *sum * 31 + (uint8_t)b[i];
	return NULL;
}

/* One thread writes, another reads the same socket's other direction. */
static void full_duplex(void)
{
	static char out[1 << 20], back[1 << 20];
	uint64_t got = 0, want = 0;
	int c, s;

	fill(out, sizeof out);
	for (size_t i = 0; i < sizeof out; i++)
		want = want * 31 + (uint8_t)out[i];
	pair(AF_INET, &c, &s);
	shared = c;
	if (fork() == 0) {
		close(c);
		read_all(s, back, sizeof back);
		write_all(s, back, sizeof back);
		_exit(0);
	}
	close(s);
	pthread_t t = start(drain, &got);
	write_all(c, out, sizeof out);
	pthread_join(t, NULL);
	R(got == want);
	wait(NULL);
	close(c);
}

static void *blocked(void *arg)
{
	char b;

	*(long *)arg = recv(shared, &b, 1, 0);
	return NULL;
}

static void *blocked_accept(void *arg)
{
	*(long *)arg = accept(shared, NULL, NULL) < 0 ? errno : 0;
	return NULL;
}

static void ends_of_waits(void)
{
	struct sockaddr_storage at;
	long rc = 77;
	pthread_t t;
	int c, s;

	pair(AF_INET, &c, &s);
	shared = s;
	t = start(blocked, &rc);
	nap(50);
	R(shutdown(s, SHUT_RD));
	pthread_join(t, NULL);
	R(rc);
	close(c);
	close(s);

	pair(AF_INET, &c, &s);
	shared = s;
	t = start(blocked, &rc);
	nap(50);
	R(send(c, "x", 1, 0));
	pthread_join(t, NULL);
	R(rc);
	close(c);
	close(s);

	shared = listener(AF_INET, &at);
	t = start(blocked_accept, &rc);
	nap(50);
	R(shutdown(shared, SHUT_RDWR));
	pthread_join(t, NULL);
	R(rc == EINVAL);
	close(shared);
}

struct worker {
	int ep, moved;
};

/* An event loop that passes each connection on to the next after one answer. */
static struct worker workers[THREADS];
static atomic_bool stop;

static void *loop(void *arg)
{
	struct worker *w = arg, *next = &workers[(w - workers + 1) % THREADS];
	struct epoll_event e;
	char b[64];

	while (!stop) {
		if (epoll_wait(w->ep, &e, 1, 20) < 1)
			continue;
		ssize_t n = recv(e.data.fd, b, sizeof b, MSG_DONTWAIT);

		if (n < 0 && errno == EAGAIN)
			continue;
		if (n <= 0) {
			close(e.data.fd);
			continue;
		}
		epoll_ctl(w->ep, EPOLL_CTL_DEL, e.data.fd, NULL);
		if (send(e.data.fd, b, n, 0) != n)
			failed++;
		w->moved++;
		e.events = EPOLLIN;
		epoll_ctl(next->ep, EPOLL_CTL_ADD, e.data.fd, &e);
	}
	return NULL;
}

static void wandering(void)
{
	pthread_t t[THREADS];
	int c[8], s[8], wrong = 0, moved = 0;
	char b[8];

	failed = 0;
	for (int i = 0; i < THREADS; i++) {
		workers[i].ep = epoll_create1(0);
		t[i] = start(loop, &workers[i]);
	}
	for (int i = 0; i < 8; i++) {
		struct epoll_event e = { .events = EPOLLIN };

		pair(AF_INET, &c[i], &s[i]);
		e.data.fd = s[i];
		epoll_ctl(workers[i % THREADS].ep, EPOLL_CTL_ADD, s[i], &e);
	}
	for (int round = 0; round < 50; round++)
		for (int i = 0; i < 8; i++) {
			write_all(c[i], "token", 5);
			wrong += recv(c[i], b, 5, MSG_WAITALL) != 5 || memcmp(b, "token", 5);
		}
	stop = true;
	for (int i = 0; i < THREADS; i++) {
		pthread_join(t[i], NULL);
		moved += workers[i].moved;
		close(workers[i].ep);
	}
	R(wrong);
	R(failed);
	R(moved);
	for (int i = 0; i < 8; i++) {
		close(c[i]);
		close(s[i]);
	}
}

static void *opener(void *arg)
{
	(void)arg;
	for (int i = 0; i < 30; i++) {
		char b[4];
		int c, s;

		pair(AF_INET, &c, &s);
		if (send(c, "abc", 3, 0) != 3 || recv(s, b, 3, MSG_WAITALL) != 3)
			failed++;
		close(c);
		close(s);
	}
	return NULL;
}

/* Descriptors are reused between threads all the time. */
static void churn(void)
{
	pthread_t t[THREADS];

	failed = 0;
	for (int i = 0; i < THREADS; i++)
		t[i] = start(opener, NULL);
	for (int i = 0; i < THREADS; i++)
		pthread_join(t[i], NULL);
	R(failed);
}

/* A process that has threads forks while connections wait in its listener. */
static void forks(void)
{
	struct sockaddr_storage at;
	int l = listener(AF_INET, &at), c[3], s, status = -1;
	char b[8];
	pid_t pid;

	for (int i = 0; i < 3; i++) {
		c[i] = dial(&at);
		write_all(c[i], "hi", 2);
		AWAIT(l, POLLIN);
	}
	pid = fork();
	if (pid == 0)
		_exit(3);
	for (int i = 0; i < 500 && waitpid(pid, &status, WNOHANG) == 0; i++)
		nap(20);
	R(status);
	if (status < 0)
		kill(pid, SIGKILL);
	for (int i = 0; i < 3; i++) {
		s = FD(accept(l, NULL, NULL));
		R(recv(s, b, sizeof b, 0));
		close(s), close(c[i]);
	}
	close(l);
}

int main(void)
{
	SECTION("several accept");
	acceptors();
	SECTION("several send");
	senders();
	SECTION("both directions");
	full_duplex();
	SECTION("ends of waits");
	ends_of_waits();
	SECTION("sockets that wander");
	wandering();
	SECTION("open and close");
	churn();
	SECTION("fork with connections waiting");
	forks();
	return 0;
}
