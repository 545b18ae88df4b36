/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Two processes accept from one listener, and one of them gets a client that
 * keeps it waiting: the other serves everybody else. And a parent that waits for
 * clients forks a child for each, which accepts it, as inetd does.
 */
#include "conf.h"

/* Answers one byte a connection, for as long as it lives. */
static void serve(int l)
{
	char byte;

	for (;;) {
		int s = accept(l, NULL, NULL);

		if (s < 0)
			_exit(2);
		if (read(s, &byte, 1) == 1 && write(s, &byte, 1) != 1)
			_exit(3);
		close(s);
	}
}

static void busy_sibling(int family)
{
	struct sockaddr_storage at;
	int l = listener(family, &at), idle;
	pid_t pid[2];
	char byte;

	for (int i = 0; i < 2; i++) {
		pid[i] = fork();
		if (pid[i] == 0)
			serve(l);
	}
	nap(100);
	idle = dial(&at);
	nap(100);
	for (int i = 0; i < 6; i++) {
		int c = dial(&at);

		R(write(c, "x", 1));
		AWAIT(c, POLLIN);
		R(read(c, &byte, 1));
		R(close(c));
	}
	R(write(idle, "y", 1));
	AWAIT(idle, POLLIN);
	R(close(idle));
	for (int i = 0; i < 2; i++) {
		kill(pid[i], SIGKILL);
		need(waitpid(pid[i], NULL, 0) == pid[i], "waitpid");
	}
	close(l);
}

static void child_of_a_client(int family)
{
	struct sockaddr_storage at;
	int l = listener(family, &at);

	for (int i = 0; i < 4; i++) {
		int c = dial(&at), status = -1;
		pid_t pid;
		char byte;

		AWAIT(l, POLLIN);
		pid = fork();
		if (pid == 0) {
			int s = accept(l, NULL, NULL);

			_exit(s < 0 || write(s, "x", 1) != 1);
		}
		AWAIT(c, POLLIN);
		R(read(c, &byte, 1));
		need(waitpid(pid, &status, 0) == pid, "waitpid");
		show("status %d", status);
		AWAIT(c, POLLRDHUP);
		R(close(c));
	}
	READY(l);
	close(l);
}

int main(void)
{
	SECTION("IPv4");
	busy_sibling(AF_INET);
	SECTION("IPv6");
	busy_sibling(AF_INET6);
	SECTION("a child for each, IPv4");
	child_of_a_client(AF_INET);
	SECTION("a child for each, IPv6");
	child_of_a_client(AF_INET6);
	return 0;
}
