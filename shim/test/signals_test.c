/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Blocking calls and signals: what is restarted, what fails with EINTR, and
 * what the program hears of its own actions.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "fake_dpu.h"
#include "interrupt.h"

#define RACES 5000

static volatile sig_atomic_t seen;

static void count(int sig)
{
	(void)sig;
	seen++;
}

static void handle(int sig, int flags)
{
	struct sigaction a = { .sa_handler = count, .sa_flags = flags };

	CHECK(sigaction(sig, &a, NULL) == 0);
}

static int dial(uint16_t port)
{
	struct sockaddr_in sa = { .sin_family = AF_INET, .sin_port = htons(port) };
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	inet_pton(AF_INET, "198.18.0.1", &sa.sin_addr);
	CHECK(fd >= 0 && connect(fd, (struct sockaddr *)&sa, sizeof sa) == 0);
	return fd;
}

/* Sends a signal to the first thread while it waits, then a byte, if wanted,
 * that comes back to it. */
struct kick {
	pthread_t thread, to;
	int sig, fd;
	bool data;
};

static void *kicker(void *arg)
{
	struct kick *k = arg;

	usleep(30000);
	pthread_kill(k->to, k->sig);
	usleep(30000);
	if (k->data)
		CHECK(send(k->fd, "x", 1, 0) == 1);
	return NULL;
}

static void start(struct kick *k, int fd, int sig, bool data)
{
	*k = (struct kick){ .to = pthread_self(), .sig = sig, .fd = fd, .data = data };
	seen = 0;
	CHECK(!pthread_create(&k->thread, NULL, kicker, k));
}

static void end(struct kick *k)
{
	pthread_join(k->thread, NULL);
	CHECK(seen == 1);
}

/* SIGUSR1 restarts, SIGUSR2 does not: both are in use at once. */
static void reads(void)
{
	int fd = dial(PORT_ECHO);
	struct timeval tv = { .tv_sec = 5 };
	struct kick k;
	char c;

	start(&k, fd, SIGUSR1, true);
	CHECK(recv(fd, &c, 1, 0) == 1 && c == 'x');
	end(&k);
	start(&k, fd, SIGUSR2, false);
	CHECK(recv(fd, &c, 1, 0) == -1 && errno == EINTR);
	end(&k);
	/* A timeout makes a call one that is not restarted. */
	CHECK(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv) == 0);
	start(&k, fd, SIGUSR1, false);
	CHECK(recv(fd, &c, 1, 0) == -1 && errno == EINTR);
	end(&k);
	close(fd);
}

static void *receiver(void *arg)
{
	struct pollfd p = { .fd = *(int *)arg, .events = POLLIN };
	sigset_t set;
	char c;

	sigemptyset(&set);
	sigaddset(&set, SIGWINCH);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	CHECK(recv(p.fd, &c, 1, 0) == 1);
	CHECK(poll(&p, 1, -1) == 1);
	return NULL;
}

/* A signal that nobody handles comes to a thread if the first one, to which
 * the kernel would give it, blocks it, as all others do here. It ends no call. */
static void unhandled(void)
{
	int fd = dial(PORT_ECHO);
	pthread_t t;
	char c;

	CHECK(!pthread_create(&t, NULL, receiver, &fd));
	for (int i = 0; i < 2; i++) {
		usleep(30000);
		kill(getpid(), SIGWINCH);
		usleep(30000);
		CHECK(send(fd, "x", 1, 0) == 1);
	}
	pthread_join(t, NULL);
	CHECK(recv(fd, &c, 1, 0) == 1);
	close(fd);
}

static void waits_all(void)
{
	int fd = dial(PORT_ECHO);
	struct kick k;
	char buf[8];

	/* What is there already is given, whatever the handler. */
	CHECK(send(fd, "ab", 2, 0) == 2);
	start(&k, fd, SIGUSR1, false);
	CHECK(recv(fd, buf, sizeof buf, MSG_WAITALL) == 2);
	end(&k);
	close(fd);
}

static void accepts(void)
{
	struct sockaddr_in sa = { .sin_family = AF_INET };
	socklen_t len = sizeof sa;
	struct kick k;
	int l = socket(AF_INET, SOCK_STREAM, 0), fd;

	inet_pton(AF_INET, "198.18.0.1", &sa.sin_addr);
	CHECK(bind(l, (struct sockaddr *)&sa, sizeof sa) == 0 && listen(l, 5) == 0);
	CHECK(getsockname(l, (struct sockaddr *)&sa, &len) == 0);
	start(&k, -1, SIGUSR2, false);
	CHECK(accept(l, NULL, NULL) == -1 && errno == EINTR);
	end(&k);
	start(&k, -1, SIGUSR1, false);
	end(&k);
	fake_dial(ntohs(sa.sin_port));
	CHECK((fd = accept(l, NULL, NULL)) >= 0);
	close(fd);
	close(l);
}

/* Never restarted. */
static void readiness(void)
{
	int fd = dial(PORT_ECHO), ep = epoll_create1(0);
	struct epoll_event e = { .events = EPOLLIN };
	struct pollfd p = { fd, POLLIN, 0 };
	struct kick k;
	fd_set r;

	CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e) == 0);
	start(&k, fd, SIGUSR1, false);
	CHECK(epoll_wait(ep, &e, 1, 5000) == -1 && errno == EINTR);
	end(&k);
	start(&k, fd, SIGUSR1, false);
	CHECK(poll(&p, 1, -1) == -1 && errno == EINTR);
	end(&k);
	FD_ZERO(&r);
	FD_SET(fd, &r);
	start(&k, fd, SIGUSR2, false);
	CHECK(select(fd + 1, &r, NULL, NULL, NULL) == -1 && errno == EINTR);
	end(&k);
	close(fd);
	close(ep);
}

/* A mask holds for the wait, and only for that. */
static void masks(void)
{
	int fd = dial(PORT_ECHO), ep = epoll_create1(0);
	struct epoll_event e = { .events = EPOLLIN };
	struct pollfd p = { fd, POLLIN, 0 };
	struct timespec none = { 0 }, second = { .tv_sec = 1 };
	sigset_t block, open;
	char c;

	CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e) == 0);
	sigemptyset(&open);
	sigemptyset(&block);
	sigaddset(&block, SIGUSR1);
	CHECK(!pthread_sigmask(SIG_BLOCK, &block, NULL));
	seen = 0;
	raise(SIGUSR1);
	CHECK(seen == 0);
	CHECK(ppoll(&p, 1, &second, &open) == -1 && errno == EINTR && seen == 1);
	raise(SIGUSR1);
	CHECK(ppoll(&p, 1, &none, &open) == -1 && errno == EINTR && seen == 2);
	raise(SIGUSR1);
	CHECK(epoll_pwait(ep, &e, 1, 1000, &open) == -1 && errno == EINTR && seen == 3);
	raise(SIGUSR1);
	CHECK(send(fd, "x", 1, 0) == 1);
	while (recv(fd, &c, 1, MSG_PEEK | MSG_DONTWAIT) < 0)
		usleep(1000);
	CHECK(ppoll(&p, 1, &second, &open) == 1 && p.revents == POLLIN);
	CHECK(epoll_pwait(ep, &e, 1, 1000, &open) == 1);
	CHECK(seen == 3); /* there was something to return */
	CHECK(!pthread_sigmask(SIG_UNBLOCK, &block, NULL));
	CHECK(seen == 4);
	close(fd);
	close(ep);
}

static void with_info(int sig, siginfo_t *info, void *uc)
{
	CHECK(info->si_signo == sig && uc);
	seen++;
}

#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

/* What was installed is what is told. */
static void actions(void)
{
	struct sigaction a = { .sa_sigaction = with_info, .sa_flags = SA_SIGINFO }, old;

	(void)signal(SIGHUP, SIG_DFL); /* nohup(1) has it ignored */
	CHECK(signal(SIGHUP, count) == SIG_DFL);
	CHECK(sigaction(SIGHUP, NULL, &old) == 0);
	CHECK(old.sa_handler == count && !(old.sa_flags & SA_SIGINFO));
#if !defined(__SANITIZE_THREAD__) /* its signal() is not libc's */
	CHECK(old.sa_flags & SA_RESTART);
#endif
	CHECK(siginterrupt(SIGHUP, 1) == 0);
	CHECK(sigaction(SIGHUP, &a, &old) == 0);
	CHECK(old.sa_handler == count && !(old.sa_flags & SA_RESTART));
	seen = 0;
	raise(SIGHUP);
	CHECK(seen == 1);
	CHECK(sigaction(SIGHUP, NULL, &old) == 0);
	CHECK(old.sa_sigaction == with_info && (old.sa_flags & SA_SIGINFO));
	old.sa_flags |= SA_RESETHAND;
	CHECK(sigaction(SIGHUP, &old, NULL) == 0);
	raise(SIGHUP);
	CHECK(seen == 2);
	CHECK(sigaction(SIGHUP, NULL, &old) == 0 && old.sa_handler == SIG_DFL);
	CHECK(signal(SIGHUP, SIG_IGN) == SIG_DFL && signal(SIGHUP, SIG_DFL) == SIG_IGN);
	CHECK(sigset(SIGHUP, count) == SIG_DFL && sigset(SIGHUP, SIG_DFL) == count);
	CHECK(signal(SIGKILL, count) == SIG_ERR && errno == EINVAL);
	CHECK(sigaction(1000, &a, NULL) == -1 && errno == EINVAL);
}

#if (defined(__x86_64__) || defined(__aarch64__)) && !defined(__SANITIZE_THREAD__)
static atomic_uint turn;

static void *racer(void *arg)
{
	pthread_t to = *(pthread_t *)arg;

	for (unsigned i = 1; i <= RACES; i++) {
		while (atomic_load(&turn) != i)
			sched_yield();
		for (volatile unsigned k = 0; k < i * 7919 % 3000; k++)
			;
		pthread_kill(to, SIGUSR2);
	}
	return NULL;
}

/* A signal right before the thread enters the kernel ends the sleep, too. */
static void races(void)
{
	pthread_t self = pthread_self(), t;

	CHECK(!pthread_create(&t, NULL, racer, &self));
	for (unsigned i = 1; i <= RACES; i++) {
		struct timespec longest = { .tv_sec = 30 };

		pno_interrupts_begin();
		atomic_store(&turn, i);
		CHECK(pno_sleep_ppoll(NULL, 0, &longest, NULL) == -EINTR);
		CHECK(pno_handled == PNO_INTR_STOP);
	}
	pthread_join(t, NULL);
}

#if defined(__x86_64__)
#define PC(uc) ((uc).uc_mcontext.gregs[REG_RIP])
#else
#define PC(uc) ((uc).uc_mcontext.pc)
#endif
extern char pno_sleep_look[], pno_sleep_past[], pno_sleep_no[];

/* The last instructions before the kernel are too few for races to hit: what
 * the kernel would call is called with a context that says so. */
static void moves(void)
{
	struct { void (*handler)(int, siginfo_t *, void *); unsigned long rest[20]; } now;
	siginfo_t info = { .si_signo = SIGUSR2 };
	ucontext_t uc;

	memset(&uc, 0, sizeof uc);
	CHECK(syscall(SYS_rt_sigaction, SIGUSR2, NULL, &now, 8) == 0 && now.handler != (void *)count);
	for (char *at = pno_sleep_look; at < pno_sleep_past; at++) {
		PC(uc) = (uintptr_t)at;
		now.handler(SIGUSR2, &info, &uc);
		CHECK((char *)PC(uc) == pno_sleep_no);
	}
	/* The kernel was entered, and has returned. */
	PC(uc) = (uintptr_t)pno_sleep_past;
	now.handler(SIGUSR2, &info, &uc);
	CHECK((char *)PC(uc) == pno_sleep_past);
}
#else
/* Without a system call of the shim's own, a signal between the look and libc's
 * call is noticed only when the sleep ends: see enter() in interrupt.c. */
static void races(void)
{
	printf("signals: no races here, the sleep is libc's call\n");
}

static void moves(void)
{
	printf("signals: no moves here, the sleep is libc's call\n");
}
#endif

static void *cancelled(void *arg)
{
	char c;

	recv(*(int *)arg, &c, 1, 0);
	return NULL;
}

static void cancels(void)
{
	int fd = dial(PORT_ECHO);
	pthread_t t;
	void *rc;
	char c;

	CHECK(!pthread_create(&t, NULL, cancelled, &fd));
	usleep(30000);
	CHECK(!pthread_cancel(t) && !pthread_join(t, &rc) && rc == PTHREAD_CANCELED);
	CHECK(send(fd, "x", 1, 0) == 1 && recv(fd, &c, 1, 0) == 1);
	close(fd);
}

int main(void)
{
	sigset_t winch;

	alarm(240);
	sigemptyset(&winch);
	sigaddset(&winch, SIGWINCH);
	CHECK(!pthread_sigmask(SIG_BLOCK, &winch, NULL)); /* see unhandled */
	fake_start(1, PNO_MIN_RING_SIZE * 2);
	handle(SIGUSR1, SA_RESTART);
	handle(SIGUSR2, 0);
	reads();
	unhandled();
	waits_all();
	accepts();
	readiness();
	masks();
	actions();
	races();
	moves();
	cancels();
	fake_stop();
	printf("ok signals\n");
	return 0;
}
