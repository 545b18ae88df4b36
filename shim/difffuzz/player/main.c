/* SPDX-License-Identifier: Apache-2.0 */

/*
 * player: makes the socket calls that its standard input asks for, and writes
 * down what came of each.
 *
 *   program ID        a new program, with no descriptors
 *   socket 0 tcp4     one call a line, results and descriptors in slots
 *   await …           waits until what an earlier call caused has arrived; says
 *                     something only if it does not
 *   child             what follows happens in the child of a fork,
 *   thread            or in another thread,
 *   back              up to here
 *   end               closes everything
 *
 * The transcript must not tell where it was made: no descriptor number, port
 * or time is in it. A port is named by the order in which it is first said. A
 * call that does not return within the limit is interrupted and marked HUNG.
 *
 * Nothing here is about any shim: a call is made in the plainest way, and the
 * C library's symbol decides who answers.
 */
#include "player.h"

#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Above what a program can open, below the least size of a descriptor table:
 * select does not look at what is above that. */
#define CLOSED_FD 44

int await_limit = 3000;
__thread uint8_t buffer[BUFFER];

static struct slot {
	int fd;
	uint16_t port;
} slots[SLOTS];

static char out[1 << 20];
static size_t out_len;
static const char *who = "";

static uint16_t ports[64];
static unsigned nports;
static unsigned stamp;

static volatile sig_atomic_t hung, piped;

static void flush(void)
{
	size_t at = 0;

	while (at < out_len) {
		ssize_t n = write(STDOUT_FILENO, out + at, out_len - at);

		if (n < 0 && errno != EINTR)
			_exit(3);
		at += n > 0 ? n : 0;
	}
	out_len = 0;
}

void say(const char *fmt, ...)
{
	va_list args;

	if (out_len > sizeof out - 4096)
		flush();
	va_start(args, fmt);
	out_len += vsnprintf(out + out_len, 4096, fmt, args);
	va_end(args);
}

void say_rc(long rc)
{
	if (rc < 0)
		say(" %s", strerrorname_np(errno));
	else
		say(" %ld", rc);
}

static unsigned port_name(uint16_t port)
{
	for (unsigned i = 0; i < nports; i++)
		if (ports[i] == port)
			return i + 1;
	if (nports < sizeof ports / sizeof ports[0])
		ports[nports++] = port;
	return nports;
}

void say_addr(const struct sockaddr *sa, socklen_t len)
{
	const struct sockaddr_in *v4 = (const void *)sa;
	const struct sockaddr_in6 *v6 = (const void *)sa;
	char text[INET6_ADDRSTRLEN];
	uint16_t port;

	say(" len=%u", len);
	if (len < sizeof(sa_family_t))
		return;
	if (sa->sa_family != AF_INET && sa->sa_family != AF_INET6) {
		say(" family=%d", sa->sa_family);
		return;
	}
	port = sa->sa_family == AF_INET ? v4->sin_port : v6->sin6_port;
	inet_ntop(sa->sa_family, sa->sa_family == AF_INET ? (void *)&v4->sin_addr : (void *)&v6->sin6_addr, text, sizeof text);
	if (port)
		say(" %s:p%u", text, port_name(port));
	else
		say(" %s:0", text);
}

void say_data(const void *data, ssize_t n)
{
	const uint8_t *p = data;
	uint32_t h = 2166136261u;

	say_rc(n);
	if (n <= 0)
		return;
	for (ssize_t i = 0; i < n; i++)
		h = (h ^ p[i]) * 16777619u;
	say(" #%08x", h);
}

int slot_index(const char *word)
{
	long n = word ? strtol(word, NULL, 10) : -1;

	return n >= 0 && n < SLOTS ? (int)n : 0;
}

int slot_fd(const char *word)
{
	int i = slot_index(word);

	return slots[i].fd < 0 ? CLOSED_FD + i : slots[i].fd;
}

void slot_put(const char *word, int fd)
{
	struct slot *s = &slots[slot_index(word)];

	if (fd < 0) {
		say_rc(-1);
		return;
	}
	if (s->fd >= 0)
		close(s->fd);
	*s = (struct slot){ .fd = fd };
	say(" ok");
}

void slot_clear(const char *word)
{
	slots[slot_index(word)].fd = -1;
}

void slot_set_port(int slot, uint16_t port)
{
	slots[slot].port = port;
}

uint16_t slot_port(const char *word)
{
	return slots[slot_index(word)].port;
}

long number(const char *word)
{
	return word ? strtol(word, NULL, 10) : 0;
}

void *pattern(size_t n)
{
	if (n > BUFFER)
		n = BUFFER;
	for (size_t i = 0; i < n; i++)
		buffer[i] = (stamp + i) * 31 >> 3;
	stamp += n;
	return buffer;
}

/* The limit of a call. The timer signals the thread that makes it, again and
 * again, since one signal may come just before the call blocks. */
static __thread timer_t timer;
static __thread bool has_timer;

static void watch(bool on)
{
	struct itimerspec t = { 0 };

	if (!has_timer) {
		struct sigevent ev = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGALRM };

		ev._sigev_un._tid = syscall(SYS_gettid);
		if (timer_create(CLOCK_MONOTONIC, &ev, &timer) < 0)
			_exit(4);
		has_timer = true;
	}
	if (on) {
		t.it_value.tv_sec = 1 + await_limit / 1000; /* longer than an await */
		t.it_interval.tv_nsec = 100000000;
	}
	timer_settime(timer, 0, &t, NULL);
}

static void on_signal(int sig)
{
	if (sig == SIGALRM)
		hung++;
	else
		piped++;
}

static void cut(char *line, struct op *op)
{
	char *rest = NULL;

	memset(op, 0, sizeof *op);
	for (char *w = strtok_r(line, " \n", &rest); w && op->n < MAX_WORDS; w = strtok_r(NULL, " \n", &rest))
		op->word[op->n++] = w;
}

static const struct call *find(const struct op *op)
{
	static const struct call *const tables[] = { socket_calls, option_calls, io_calls, ready_calls };

	for (size_t t = 0; t < sizeof tables / sizeof tables[0]; t++)
		for (const struct call *c = tables[t]; c->name; c++)
			if (!strcmp(c->name, op->word[0]) && op->n > c->args)
				return c;
	return NULL;
}

/* A program is read as a whole first. */
#define MAX_LINES 512
static char text[1 << 16];
static struct op ops[MAX_LINES];
static char *lines[MAX_LINES];
static int nops;

static int play(int at);

struct range {
	int from, to;
};

static void play_range(int from, int to)
{
	while (from < to && from < nops)
		from = play(from);
}

static void *in_thread(void *arg)
{
	struct range *r = arg;

	who = "thread: ";
	play_range(r->from, r->to);
	if (has_timer)
		timer_delete(timer);
	return NULL;
}

/* The line after the "back" of the block that begins here. */
static int block_end(int at)
{
	while (at < nops && strcmp(ops[at].word[0], "back"))
		at++;
	return at + 1;
}

static int play_thread(int at)
{
	struct range r = { at + 1, block_end(at) };
	pthread_t t;

	if (pthread_create(&t, NULL, in_thread, &r))
		_exit(5);
	pthread_join(t, NULL);
	who = "";
	return r.to;
}

static int play_child(int at)
{
	int to = block_end(at), status;
	pid_t pid;

	flush();
	pid = fork();
	if (pid == 0) {
		who = "child: ";
		has_timer = false; /* a child inherits no timer */
		play_range(at + 1, to);
		flush();
		_exit(0);
	}
	if (pid < 0) {
		say("fork:");
		say_rc(-1);
		say("\n");
		return to;
	}
	while (waitpid(pid, &status, 0) < 0)
		;
	if (status)
		say("child ended with status %#x\n", status);
	return to;
}

/* Plays one line, and what belongs to it; returns the next. */
static int play(int at)
{
	const struct op *op = &ops[at];
	bool quiet = !strcmp(op->word[0], "await");
	const struct call *c;

	if (!strcmp(op->word[0], "child"))
		return play_child(at);
	if (!strcmp(op->word[0], "thread"))
		return play_thread(at);
	if (!strcmp(op->word[0], "back"))
		return at + 1;
	c = find(op);
	if (!c) {
		say("%s%s: no such call\n", who, lines[at]);
		return at + 1;
	}
	if (!quiet)
		say("%s%s ->", who, lines[at]);
	hung = piped = 0;
	watch(true);
	c->run(op);
	watch(false);
	if (piped)
		say(" SIGPIPE");
	if (hung)
		say(" HUNG");
	if (!quiet)
		say("\n");
	return at + 1;
}

static void start_empty(void)
{
	for (int i = 0; i < SLOTS; i++)
		slots[i] = (struct slot){ .fd = -1 };
	nports = stamp = 0;
}

static void close_all(void)
{
	for (int i = 0; i < SLOTS; i++)
		if (slots[i].fd >= 0)
			close(slots[i].fd);
}

/* Reads up to "end"; false at the end of the input. */
static bool read_program(void)
{
	size_t used = 0;
	char line[512];

	nops = 0;
	while (fgets(line, sizeof line, stdin)) {
		size_t n = strlen(line);

		if (!strcmp(line, "end\n"))
			return true;
		if (nops == MAX_LINES || used + 2 * (n + 1) > sizeof text)
			_exit(6);
		line[strcspn(line, "\n")] = 0;
		lines[nops] = strcpy(text + used, line);
		used += n + 1;
		cut(strcpy(text + used, line), &ops[nops]);
		used += n + 1;
		if (ops[nops].n)
			nops++;
	}
	return false;
}

/* A network of our own, so that no port is ever somebody else's. */
static void private_network(void)
{
	struct ifreq r = { .ifr_name = "lo" };
	int fd;

	if (unshare(CLONE_NEWNET) < 0 && unshare(CLONE_NEWUSER | CLONE_NEWNET) < 0) {
		perror("player: make a network namespace");
		exit(2);
	}
	fd = socket(AF_INET, SOCK_DGRAM, 0);
	if (ioctl(fd, SIOCGIFFLAGS, &r) < 0 || (r.ifr_flags |= IFF_UP, ioctl(fd, SIOCSIFFLAGS, &r) < 0)) {
		perror("player: bring the loopback up");
		exit(2);
	}
	close(fd);
}

int main(int argc, char **argv)
{
	struct sigaction sa = { .sa_handler = on_signal };
	char line[64];

	if (argc > 1 && !strcmp(argv[1], "--private-network"))
		private_network();
	sigaction(SIGALRM, &sa, NULL);
	sigaction(SIGPIPE, &sa, NULL);
	while (fgets(line, sizeof line, stdin)) {
		char id[32];
		int limit;

		if (sscanf(line, "limit %d", &limit) == 1) {
			await_limit = limit;
			continue;
		}
		if (sscanf(line, "program %31s", id) != 1)
			continue;
		if (!read_program())
			break;
		start_empty();
		say("begin %s\n", id);
		play_range(0, nops);
		close_all();
		say("end %s\n", id);
		flush();
	}
	return 0;
}
