/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A program forks again and again while its other threads open, use and close
 * sockets: neither the parent nor a child finds a lock that nobody will give
 * back.
 */
#include "conf.h"

#include <pthread.h>

#define ROUNDS 400
#define THREADS 4

static struct sockaddr_storage at;

static void *echo(void *arg)
{
	int l = *(int *)arg;
	char byte;

	for (;;) {
		int s = accept(l, NULL, NULL);

		if (s < 0)
			return NULL;
		if (read(s, &byte, 1) == 1 && byte == 'q') {
			close(s);
			return NULL;
		}
		need(write(s, &byte, 1) == 1, "write");
		close(s);
	}
}

static void *clients(void *arg)
{
	long good = 0;
	char byte;

	(void)arg;
	for (int i = 0; i < ROUNDS; i++) {
		int c = dial(&at);

		need(write(c, "x", 1) == 1, "write");
		good += read(c, &byte, 1) == 1;
		close(c);
	}
	return (void *)good;
}

int main(void)
{
	int l = listener(AF_INET, &at), status = 0;
	pthread_t server, client[THREADS];
	void *answered;

	SECTION("fork while threads open and close");
	need(!pthread_create(&server, NULL, echo, &l), "pthread_create");
	for (int i = 0; i < THREADS; i++)
		need(!pthread_create(&client[i], NULL, clients, NULL), "pthread_create");
	for (int i = 0; i < 40; i++) {
		pid_t pid = fork();

		if (pid == 0)
			_exit(0);
		need(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0, "waitpid");
		nap(5);
	}
	for (int i = 0; i < THREADS; i++) {
		need(!pthread_join(client[i], &answered), "pthread_join");
		R((long)answered);
	}
	status = dial(&at);
	R(write(status, "q", 1));
	need(!pthread_join(server, NULL), "pthread_join");
	return 0;
}
