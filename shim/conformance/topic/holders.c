/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Who may accept: every process that holds the listener, however it came to it,
 * and whoever else has closed it meanwhile.
 */
#include "conf.h"

#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

static struct sockaddr_storage at;
static int up[2]; /* 0: the parent's end, 1: the child's */

static void say(int end) { need(write(up[end], "x", 1) == 1, "write"); }

static void hear(int end)
{
	char b;

	need(read(up[end], &b, 1) == 1, "read");
}

/* A pair to speak by, for one child. */
static void pipes(void) { need(socketpair(AF_UNIX, SOCK_STREAM, 0, up) == 0, "socketpair"); }

static void unpipe(void)
{
	close(up[0]);
	close(up[1]);
}

/* A client's connection, asked for before or after the hand-over. */
static int call(void)
{
	struct timeval t = { 10, 0 };
	int c = dial(&at);

	need(setsockopt(c, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t) == 0, "SO_RCVTIMEO");
	return c;
}

/* Accepts one, and says who did. */
static void serve(int l, const char *who)
{
	struct pollfd p = { .fd = l, .events = POLLIN };
	int s;

	need(poll(&p, 1, 10000) == 1, "poll of the listener");
	s = accept(l, NULL, NULL);
	need(s >= 0, "accept");
	write_all(s, who, strlen(who));
	close(s);
}

static void answered(int c)
{
	char b[16] = "";

	R(recv(c, b, sizeof b, 0) > 0);
	show("by the %s", b);
	close(c);
}

static void leave(void)
{
	fflush(stdout);
	_exit(0);
}

static void ended(pid_t pid)
{
	int status = -1;

	waitpid(pid, &status, 0);
	R(status);
}

/* Nobody holds it any more. */
static void freed(void)
{
	int64_t end = conf_now() + 10000;
	int c, rc;

	do {
		c = socket(AF_INET, SOCK_STREAM, 0);
		rc = connect(c, SA(at), addr_len(&at));
		close(c);
		if (rc)
			break;
		nap(5);
	} while (conf_now() < end);
	R(rc);
}

enum { WAITING = 1, KEPT = 2, USED = 4 };

/* The child has it by fork, closes it, and gets it in a message. WAITING: the
 * client is there before; KEPT: the parent keeps it; USED: the child has made
 * calls of its own before. */
static void again(int how)
{
	int l = listener(AF_INET, &at), c = -1, f;
	pid_t pid;

	pipes();
	if (how & WAITING)
		c = call();
	pid = fork();
	if (pid == 0) {
		if (how & USED) {
			struct sockaddr_storage own;

			close(listener(AF_INET, &own));
		}
		close(l);
		if (c >= 0)
			close(c);
		f = take_fd(up[1]);
		need(f >= 0, "a listener in the message");
		serve(f, "child");
		hear(1);
		close(f);
		leave();
	}
	pass_fd(up[0], l);
	if (!(how & KEPT))
		close(l);
	if (c < 0)
		c = call();
	answered(c);
	say(0);
	ended(pid);
	if (how & KEPT)
		close(l);
	freed();
	unpipe();
}

/* Forked before it listens, and a child of that one: strangers to the listener. */
static void strangers(void)
{
	int l, c, f;
	pid_t pid;

	pipes();
	pid = fork();
	if (pid == 0) {
		f = take_fd(up[1]);
		if (fork() == 0) {
			hear(1);
			serve(f, "grandchild");
			leave();
		}
		serve(f, "child");
		close(f);
		say(1);
		wait(NULL);
		leave();
	}
	l = listener(AF_INET, &at);
	pass_fd(up[0], l);
	close(l);
	c = call();
	answered(c);
	hear(0);
	c = call();
	say(0);
	answered(c);
	ended(pid);
	freed();
	unpipe();
}

/* To a child and back, closed here meanwhile, and served here in the end. */
static void there_and_back(void)
{
	int l = listener(AF_INET, &at), c, f;
	pid_t pid;

	pipes();
	pid = fork();
	if (pid == 0) {
		close(l);
		f = take_fd(up[1]);
		pass_fd(up[1], f);
		close(f);
		leave();
	}
	pass_fd(up[0], l);
	close(l);
	ended(pid);
	c = call();
	f = take_fd(up[0]);
	serve(f, "parent");
	answered(c);
	close(f);
	freed();
	unpipe();
}

/* A copy of the descriptor is the listener, too. */
static void copies(void)
{
	int l = listener(AF_INET, &at), d = dup(l), c;
	pid_t pid;

	close(l);
	pid = fork();
	if (pid == 0) {
		int e = dup2(d, 40);

		close(d);
		serve(e, "child");
		leave();
	}
	close(d);
	c = call();
	answered(c);
	ended(pid);
	freed();
}

/* Two children have it by fork; the parent and one of them close it. */
static void siblings(void)
{
	int l = listener(AF_INET, &at), c;
	pid_t one, two;

	pipes();
	one = fork();
	if (one == 0) {
		close(l);
		say(1);
		hear(1);
		leave();
	}
	two = fork();
	if (two == 0) {
		serve(l, "second child");
		leave();
	}
	close(l);
	hear(0);
	c = call();
	answered(c);
	ended(two);
	say(0);
	ended(one);
	freed();
	unpipe();
}

/* A new program has it by exec: the child of a fork that closed it, and got it
 * again. */
static void replaced(const char *self)
{
	int l = listener(AF_INET, &at), c;
	pid_t pid;

	pipes();
	pid = fork();
	if (pid == 0) {
		char number[12];
		int f;

		close(l);
		f = take_fd(up[1]);
		snprintf(number, sizeof number, "%d", f);
		fflush(stdout);
		execl(self, self, "serve", number, NULL);
		_exit(9);
	}
	pass_fd(up[0], l);
	close(l);
	c = call();
	answered(c);
	ended(pid);
	freed();
	unpipe();
}

/* Out of another process's table. */
static void fetched(void)
{
	int l = listener(AF_INET, &at), c, pidfd, f;
	pid_t pid;

	pipes();
	prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
	pid = fork();
	if (pid == 0) {
		close(l);
		pidfd = pidfd_open(getppid(), 0);
		need(pidfd >= 0, "pidfd_open");
		R(syscall(SYS_pidfd_getfd, pidfd, 700, 0));
		R(pidfd_getfd(pidfd, up[0], 0) >= 0);
		R((f = pidfd_getfd(pidfd, l, 0)) >= 0);
		fflush(stdout);
		say(1);
		hear(1);
		serve(f, "child");
		leave();
	}
	hear(0);
	close(l);
	say(0);
	c = call();
	answered(c);
	ended(pid);
	freed();
	unpipe();
}

int main(int argc, char **argv)
{
	if (argc == 3) {
		serve(atoi(argv[2]), "new program");
		return 0;
	}
	SECTION("closed by the child, and sent to it");
	again(0);
	again(WAITING);
	again(KEPT);
	again(KEPT | WAITING);
	again(USED);
	again(USED | WAITING | KEPT);
	SECTION("sent to strangers");
	strangers();
	SECTION("there and back");
	there_and_back();
	SECTION("copies of the descriptor");
	copies();
	SECTION("one of several closes it");
	siblings();
	SECTION("taken over by a new program");
	replaced(argv[0]);
	SECTION("fetched from another process");
	fetched();
	return 0;
}
