/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Signal handlers that make calls for the very socket that their thread is in
 * the middle of, as signal-safety(7) allows: a timer fires all the time, while
 * the thread sends, receives, waits, allocates, opens and closes.
 *
 * What the handler sends lies between what the thread sends, but each send of
 * up to four bytes is whole; so the stream is made of words of four bytes, each
 * of which says who sent it, and counts.
 */
#include "conf.h"

#include <pthread.h>
#include <sys/epoll.h>
#include <sys/time.h>

enum { WORDS = 60000, TICK_US = 150, LEAST = 200 };

static volatile sig_atomic_t ticks, fd_now = -1, victim = -1, failures;
static volatile uint32_t by_handler;

static uint32_t word(int who, uint32_t n)
{
	return (uint32_t)who << 31 | (n & 0x7fffffff);
}

static void timer(int us)
{
	struct itimerval t = { { 0, us }, { 0, us } };

	setitimer(ITIMER_REAL, &t, NULL);
}

static void handle(int sig, void (*fn)(int), int flags)
{
	struct sigaction a = { .sa_handler = fn, .sa_flags = flags };

	sigaction(sig, &a, NULL);
}

/* Sends a word, unless there is no room for it. */
static void sends(int sig)
{
	uint32_t w = word(1, by_handler);
	int saved = errno, fd = fd_now;
	ssize_t n;

	(void)sig;
	ticks++;
	if (fd >= 0) {
		n = send(fd, &w, sizeof w, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (n == sizeof w)
			by_handler++;
		else if (n >= 0 || (errno != EAGAIN && errno != EPIPE))
			failures++;
	}
	errno = saved;
}

/* Sends n words while the handler does, until it has done so often enough. */
static void *sender(void *arg)
{
	int fd = *(int *)arg;
	uint32_t n = 0;

	fd_now = fd;
	timer(TICK_US);
	for (int64_t end = conf_now() + 30000; (n < WORDS || ticks < LEAST) && conf_now() < end; n++) {
		uint32_t w = word(0, n);
		ssize_t k;

		while ((k = send(fd, &w, sizeof w, MSG_NOSIGNAL)) < 0 && errno == EINTR)
			;
		if (k != sizeof w) {
			failures++;
			break;
		}
		free(malloc(64 + n % 4096));
	}
	timer(0);
	fd_now = -1;
	shutdown(fd, SHUT_WR);
	return (void *)(uintptr_t)n;
}

struct received {
	uint32_t count[2];
	bool broken;
};

/* Counts the words of either: each one's come in order, none twice. */
static void take(struct received *r, const uint8_t *b, size_t len)
{
	for (size_t i = 0; i + 4 <= len; i += 4) {
		uint32_t w;

		memcpy(&w, b + i, 4);
		r->broken |= (w & 0x7fffffff) != r->count[w >> 31]++;
	}
}

static void *receiver(void *arg)
{
	static struct received r;
	int fd = *(int *)arg;
	uint8_t b[4096];
	size_t have = 0;
	ssize_t n;

	memset(&r, 0, sizeof r);
	while ((n = recv(fd, b + have, sizeof b - have, 0)) > 0 || (n < 0 && errno == EINTR)) {
		if (n < 0)
			continue;
		have += n;
		take(&r, b, have & ~3ul);
		memmove(b, b + (have & ~3ul), have & 3);
		have &= 3;
	}
	if (n < 0 || have)
		r.broken = true;
	return &r;
}

/* The handler in a thread that sends, with as many threads as that takes. */
static void sending(void)
{
	int c, s;
	pthread_t other;
	sigset_t alarm_only;
	struct received *r;
	void *result;
	uint32_t n;

	pair(AF_INET, &c, &s);
	ticks = failures = 0;
	by_handler = 0;
	handle(SIGALRM, sends, SA_RESTART);
	sigemptyset(&alarm_only);
	sigaddset(&alarm_only, SIGALRM);
	pthread_sigmask(SIG_BLOCK, &alarm_only, NULL);
	pthread_create(&other, NULL, receiver, &s);
	pthread_sigmask(SIG_UNBLOCK, &alarm_only, NULL);
	n = (uintptr_t)sender(&c);
	pthread_join(other, &result);
	r = result;
	R(n >= WORDS);
	R(ticks >= LEAST);
	R(failures == 0);
	R(!r->broken);
	R(r->count[0] == n);
	R(r->count[1] == by_handler && by_handler > 0);
	close(c);
	close(s);
}

/* The same in a process of one thread, where nothing is locked: the other end
 * is a child's. */
static void alone(void)
{
	int c, s, report[2], status;
	struct received r = { { 0 }, true };
	uint32_t n;
	pid_t child;

	pair(AF_INET, &c, &s);
	need(pipe(report) == 0, "pipe");
	child = fork();
	if (!child) {
		close(c);
		r = *(struct received *)receiver(&s);
		write_all(report[1], &r, sizeof r);
		_exit(0);
	}
	close(s);
	ticks = failures = 0;
	by_handler = 0;
	handle(SIGALRM, sends, SA_RESTART);
	n = (uintptr_t)sender(&c);
	read_all(report[0], &r, sizeof r);
	waitpid(child, &status, 0);
	R(n >= WORDS);
	R(ticks >= LEAST);
	R(failures == 0);
	R(!r.broken);
	R(r.count[0] == n);
	R(r.count[1] == by_handler && by_handler > 0);
	close(c);
	close(report[0]);
	close(report[1]);
}

static char taken[1 << 16];
static volatile uint32_t ntaken;

/* Takes a byte of what the thread is reading. */
static void reads(int sig)
{
	int saved = errno, fd = fd_now;
	struct pollfd p = { .fd = fd, .events = POLLIN };
	char b;

	(void)sig;
	ticks++;
	if (fd >= 0 && poll(&p, 1, 0) > 0 && recv(fd, &b, 1, MSG_DONTWAIT) == 1)
		taken[ntaken++ % sizeof taken] = b;
	errno = saved;
}

/* Both read one stream: all of it comes, once. */
static void receiving(void)
{
	enum { EACH = 1024 };
	uint64_t sum = 0, want = 0;
	size_t got = 0, sent = 0;
	int c, s, ep = epoll_create1(0);
	uint8_t b[EACH];

	pair(AF_INET, &c, &s);
	epoll_ctl(ep, EPOLL_CTL_ADD, s, &(struct epoll_event){ .events = EPOLLIN });
	ticks = failures = 0;
	ntaken = 0;
	handle(SIGALRM, reads, 0);
	fd_now = s;
	timer(TICK_US);
	for (int64_t end = conf_now() + 30000; (sent < 1000 * EACH || ticks < LEAST) && conf_now() < end;) {
		struct epoll_event ev;
		ssize_t n;

		fill(b, sizeof b);
		for (size_t i = 0; i < sizeof b; i++)
			want += b[i];
		write_all(c, b, sizeof b);
		sent += sizeof b;
		while (got + ntaken < sent && conf_now() < end) {
			epoll_wait(ep, &ev, 1, 20);
			n = recv(s, b, sizeof b, MSG_DONTWAIT);
			for (ssize_t i = 0; i < n; i++)
				sum += b[i];
			got += n > 0 ? n : 0;
			if (n < 0 && errno != EAGAIN && errno != EINTR)
				failures++;
		}
	}
	timer(0);
	fd_now = -1;
	need(ntaken < sizeof taken, "room for what the handler takes");
	for (uint32_t i = 0; i < ntaken; i++)
		sum += (uint8_t)taken[i];
	R(ticks >= LEAST);
	R(failures == 0);
	R(got + ntaken == sent);
	R(sum == want);
	R(ntaken > 0);
	close(c), close(s), close(ep);
}

/* Closes what the thread works on. */
static void closes(int sig)
{
	int saved = errno, fd = victim;

	(void)sig;
	ticks++;
	if (fd >= 0) {
		victim = -1;
		if (close(fd) < 0)
			failures++;
	}
	errno = saved;
}

static void closing(void)
{
	struct sockaddr_storage at;
	int l = listener(AF_INET, &at), rounds = 0;

	ticks = failures = 0;
	handle(SIGALRM, closes, SA_RESTART);
	timer(TICK_US * 2);
	for (int64_t end = conf_now() + 30000; ticks < LEAST && conf_now() < end; rounds++) {
		int c = dial(&at), s;
		char b[512] = { 0 };

		do
			s = accept(l, NULL, NULL);
		while (s < 0 && errno == EINTR);
		victim = c;
		while (victim >= 0) {
			if (send(c, b, sizeof b, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 && errno != EAGAIN && errno != EBADF)
				failures++;
			if (recv(s, b, sizeof b, MSG_DONTWAIT) < 0 && errno != EAGAIN && errno != EINTR)
				failures++;
		}
		if (send(c, b, 1, MSG_NOSIGNAL) != -1 || errno != EBADF)
			failures++;
		close(s);
	}
	timer(0);
	R(ticks >= LEAST);
	R(failures == 0);
	R(rounds > 0);
	close(l);
}

static volatile sig_atomic_t value, from_me, one_shot;

static void informed(int sig, siginfo_t *info, void *context)
{
	(void)sig, (void)context;
	value = info->si_value.sival_int;
	from_me += info->si_code == SI_QUEUE && info->si_pid == getpid();
	one_shot++;
}

static volatile sig_atomic_t nested, nesting;

static void nests(int sig)
{
	(void)sig;
	nested += nesting;
	nesting = 1;
	sends(sig);
	nesting = 0;
}

/* A signal that was put off is the one that was sent: what it carries, the
 * mask of its handler and of the thread, and a handler for one time. */
static void faithful(void)
{
	struct sigaction a = { .sa_sigaction = informed, .sa_flags = SA_SIGINFO | SA_RESETHAND }, now;
	int c, s;
	char b[64] = { 0 };
	sigset_t mask;

	pair(AF_INET, &c, &s);
	fd_now = c;
	ticks = nested = failures = 0;
	handle(SIGALRM, nests, SA_RESTART);
	timer(TICK_US);
	for (int64_t end = conf_now() + 30000; ticks < LEAST && conf_now() < end;) {
		if (send(c, b, sizeof b, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 && errno != EAGAIN)
			failures++;
		recv(s, b, sizeof b, MSG_DONTWAIT);
		sigaction(SIGUSR1, &a, NULL);
		sigqueue(getpid(), SIGUSR1, (union sigval){ .sival_int = 42 });
		sigaction(SIGUSR1, NULL, &now);
		if (now.sa_handler != SIG_DFL || value != 42)
			failures++;
		value = 0;
	}
	timer(0);
	fd_now = -1;
	sigprocmask(SIG_BLOCK, NULL, &mask);
	R(ticks >= LEAST);
	R(failures == 0);
	R(from_me == one_shot && one_shot > 0);
	R(nested);
	R(sigismember(&mask, SIGALRM));
	R(sigismember(&mask, SIGUSR1));
	close(c), close(s);
}

int main(void)
{
	SECTION("a handler receives");
	receiving();
	SECTION("a handler closes");
	closing();
	SECTION("a handler sends, one thread");
	alone();
	SECTION("what a handler is told");
	faithful();
	SECTION("a handler sends, several threads");
	sending();
	SECTION("a handler receives, several threads");
	receiving();
	SECTION("a handler closes, several threads");
	closing();
	return 0;
}
