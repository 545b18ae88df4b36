/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A proxy's connection to a server is made on the shard of the client that it
 * is for, as far as that can be known.
 */
#include <arpa/inet.h>
#include <pthread.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fake_dpu.h"
#include "sock.h"

#define SHARDS 3u
#define REMEMBERED 32

static int listener;
static uint16_t port;

static void listen_here(void)
{
	struct sockaddr_in sa = { .sin_family = AF_INET };
	struct epoll_event ev = { .events = EPOLLIN };
	socklen_t len = sizeof sa;
	int ep = epoll_create1(0);

	listener = socket(AF_INET, SOCK_STREAM, 0);
	inet_pton(AF_INET, "198.18.0.2", &sa.sin_addr);
	CHECK(bind(listener, (struct sockaddr *)&sa, sizeof sa) == 0 && listen(listener, 64) == 0);
	CHECK(getsockname(listener, (struct sockaddr *)&sa, &len) == 0);
	CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, listener, &ev) == 0);
	port = ntohs(sa.sin_port);
}

static unsigned shard_of(int fd)
{
	struct pno_sock *s = pno_sock_peek(fd);
	unsigned shard;

	CHECK(s);
	shard = s->shard;
	pno_sock_unlock(s);
	return shard;
}

static int client(unsigned shard)
{
	int fd;

	fake_dial_on(shard, port);
	fd = accept(listener, NULL, NULL);
	CHECK(fd >= 0 && shard_of(fd) == shard);
	return fd;
}

/* A connection is made, and is of that shard. */
static void expect(unsigned shard)
{
	int fd = fake_connect(PORT_ECHO);

	CHECK(shard_of(fd) == shard);
	close(fd);
}

static void request(int fd)
{
	char b[5];

	CHECK(recv(fd, b, sizeof b, MSG_WAITALL) == sizeof b);
}

/* With no client to serve, each shard has its turn. */
static void expect_turns(void)
{
	unsigned first;
	int fd = fake_connect(PORT_ECHO);

	first = shard_of(fd);
	close(fd);
	for (unsigned i = 1; i <= 2 * SHARDS; i++)
		expect((first + i) % SHARDS);
}

/* Clients come one by one, or several at once, to shards in no order. */
static void relay(void)
{
	uint32_t x = 1;
	int fd[8];

	for (unsigned round = 0; round < 64; round++) {
		unsigned n = 1 + round % 8, shard[8];

		for (unsigned i = 0; i < n; i++) {
			x = x * 1664525 + 1013904223;
			shard[i] = (x >> 16) % SHARDS;
			fd[i] = client(shard[i]);
		}
		for (unsigned i = 0; i < n; i++)
			expect(shard[i]);
		for (unsigned i = 0; i < n; i++)
			close(fd[i]);
	}
	expect_turns();
}

/* A proxy of requests connects for whoever has sent one. */
static void requests(void)
{
	int a = client(0), b = client(1), c = client(2);

	request(b);
	expect(1);
	request(c);
	request(a);
	expect(0); /* the older of both */
	expect(2);
	close(a), close(b), close(c);
	expect_turns();
}

/* Who is gone, or has an answer, does not wait for a server. */
static void not_served(void)
{
	int gone = client(0), answered = client(1), a = client(2), b;

	close(gone);
	request(answered);
	CHECK(send(answered, "no", 2, 0) == 2);
	b = client(0);
	expect(2);
	expect(0);
	close(answered), close(a), close(b);
	expect_turns();
}

/* Those that never ask for anything are forgotten. */
static void idle(void)
{
	int fd[REMEMBERED + 8];

	for (int i = 0; i < REMEMBERED + 8; i++)
		fd[i] = client(i < REMEMBERED ? 0 : 1);
	for (int i = 8; i < REMEMBERED + 8; i++)
		expect(i < REMEMBERED ? 0 : 1);
	expect_turns();
	for (int i = 0; i < REMEMBERED + 8; i++)
		close(fd[i]);
}

static void *accept_elsewhere(void *arg)
{
	*(int *)arg = client(0);
	return NULL;
}

/* Each thread has its own. */
static void threads(void)
{
	pthread_t t;
	int fd, mine = client(2);

	CHECK(pthread_create(&t, NULL, accept_elsewhere, &fd) == 0 && pthread_join(t, NULL) == 0);
	expect(2);
	expect_turns();
	close(fd), close(mine);
}

int main(void)
{
	alarm(240);
	fake_start(SHARDS, PNO_MIN_RING_SIZE * 2);
	listen_here();
	relay();
	requests();
	not_served();
	idle();
	threads();
	fake_stop();
	return 0;
}
