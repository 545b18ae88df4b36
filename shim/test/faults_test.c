/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Bad pointers get the kernel's errno, and the program's own faults stay its
 * own.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fake_dpu.h"
#include "fault.h"

#define PAGE 4096

static char *edge;     /* what follows is not there */
static char *readonly;
#pragma GCC diagnostic ignored "-Wstringop-overflow"
#pragma GCC diagnostic ignored "-Wnonnull"

static void *volatile bad = (void *)16;

#define FAULTS(call) CHECK((call) == -1 && errno == EFAULT)

static void fill(int fd, const char *text)
{
	int n = 0, want = strlen(text);

	CHECK(send(fd, text, want, 0) == want);
	while (recv(fd, &(char[64]){ 0 }, 64, MSG_PEEK) < want)
		;
	CHECK(ioctl(fd, FIONREAD, &n) == 0 && n == want);
}

/* Nothing is lost by a read that faults. */
static void reads(void)
{
	int fd = fake_connect(PORT_ECHO), n;
	struct iovec v[2] = { { edge - 3, 3 }, { bad, 100 } };
	struct msghdr m = { .msg_iov = v, .msg_iovlen = 1 };

	fill(fd, "abcdef");
	FAULTS(recv(fd, NULL, 6, 0));
	FAULTS(recv(fd, bad, 1, MSG_PEEK));
	FAULTS(read(fd, (void *)-8, 6));
	FAULTS(read(fd, edge - 3, 6));
	FAULTS(read(fd, readonly, 6));
	FAULTS(readv(fd, v, 2));
	FAULTS(readv(fd, bad, 2));
	FAULTS(readv(fd, (struct iovec *)(edge - 16), 2));
	FAULTS(recvmsg(fd, bad, 0));
	m.msg_iov = bad;
	FAULTS(recvmsg(fd, &m, 0));
	FAULTS(ioctl(fd, FIONREAD, bad));
	CHECK(ioctl(fd, FIONREAD, &n) == 0 && n == 6);
	CHECK(read(fd, edge - 6, 6) == 6 && !memcmp(edge - 6, "abcdef", 6));
	close(fd);
}

/* Every length and a few alignments, and nothing beyond. */
static void copies(void)
{
	static char from[6000], to[6000];
	size_t longest = 2200;
	int fd = fake_connect(PORT_ECHO);

	for (size_t i = 0; i < sizeof from; i++)
		from[i] = pattern(i) | 1;
	for (size_t n = 0; n <= longest; n++) {
		size_t at = n % 17, out = n % 13 + 64;

		memset(to, 0, n + 256);
		CHECK(pno_copy(to + out, from + at, n));
		CHECK(!memcmp(to + out, from + at, n) && !to[out + n]);
		CHECK(n == 0 || !to[out - 1]);
		CHECK(pno_copy(edge - n, from, n) && !memcmp(edge - n, from, n));
		CHECK(!pno_copy(edge - n, from, n + 1) && !pno_copy(to, edge - n, n + 1));
	}
	close(fd);
}

static void lengths(void)
{
	int fd = fake_connect(PORT_ECHO);
	static struct iovec v[IOV_MAX + 1];
	struct msghdr m = { .msg_iov = v, .msg_iovlen = IOV_MAX + 1 };
	char buf[4];

	CHECK(readv(fd, v, IOV_MAX + 1) == -1 && errno == EINVAL);
	CHECK(writev(fd, v, -1) == -1 && errno == EINVAL);
	CHECK(sendmsg(fd, &m, 0) == -1 && errno == EMSGSIZE);
	CHECK(recvmsg(fd, &m, 0) == -1 && errno == EMSGSIZE);
	v[0] = (struct iovec){ buf, -1 };
	CHECK(writev(fd, v, 1) == -1 && errno == EINVAL);
	CHECK(readv(fd, v, 1) == -1 && errno == EINVAL);
	CHECK(read(fd, NULL, 0) == 0);
	CHECK(recv(fd, buf, 0, MSG_DONTWAIT) == -1 && errno == EAGAIN);
	fill(fd, "x");
	CHECK(recv(fd, buf, 0, 0) == 0);
	CHECK(recv(fd, buf, 4, 0) == 1);
	close(fd);
}

static void writes(void)
{
	int fd = fake_connect(PORT_ECHO);
	struct iovec v[2] = { { "abc", 3 }, { bad, 4 } };
	struct msghdr m = { .msg_iov = v, .msg_iovlen = 1 };
	char buf[16];

	FAULTS(send(fd, NULL, 1, 0));
	FAULTS(write(fd, edge - 2, 3));
	FAULTS(writev(fd, v, 2));
	FAULTS(writev(fd, bad, 1));
	FAULTS(sendmsg(fd, bad, 0));
	FAULTS(sendto(fd, "x", 1, 0, bad, 16));
	m.msg_control = bad;
	m.msg_controllen = 64;
	FAULTS(sendmsg(fd, &m, 0));
	memcpy(edge - 5, "12345", 5);
	CHECK(write(fd, edge - 5, 5) == 5);
	CHECK(recv(fd, buf, 5, MSG_WAITALL) == 5 && !memcmp(buf, "12345", 5));
	close(fd);
}

static void addresses(void)
{
	int fd = fake_connect(PORT_ECHO), one = 1;
	struct sockaddr_in sa;
	socklen_t len = sizeof sa;

	FAULTS(getpeername(fd, bad, &len));
	FAULTS(getsockname(fd, (void *)&sa, bad));
	len = -1;
	CHECK(getsockname(fd, (void *)&sa, &len) == -1 && errno == EINVAL);
	FAULTS(setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, bad, sizeof one));
	CHECK(setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, -1) == -1 && errno == EINVAL);
	len = sizeof one;
	FAULTS(getsockopt(fd, SOL_SOCKET, SO_TYPE, bad, &len));
	FAULTS(getsockopt(fd, SOL_SOCKET, SO_TYPE, &one, bad));
	FAULTS(ioctl(fd, FIONBIO, bad));
	close(fd);
	fd = socket(AF_INET, SOCK_STREAM, 0);
	FAULTS(connect(fd, bad, sizeof sa));
	FAULTS(bind(fd, bad, sizeof sa));
	CHECK(connect(fd, (void *)&sa, 1000) == -1 && errno == EINVAL);
	close(fd);
}

static void readiness(void)
{
	int fd = fake_connect(PORT_ECHO), ep = epoll_create1(0);
	struct epoll_event e = { .events = EPOLLOUT };
	struct timeval tv = { 0 };
	fd_set set;

	FAULTS(epoll_ctl(ep, EPOLL_CTL_ADD, fd, bad));
	CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e) == 0);
	FAULTS(epoll_wait(ep, bad, 1, 1000));
	FAULTS(epoll_wait(ep, (struct epoll_event *)readonly, 1, 1000));
	CHECK(epoll_wait(ep, &e, 1, 1000) == 1); /* still there */
	CHECK(epoll_wait(ep, &e, 0, 0) == -1 && errno == EINVAL);
	FAULTS(poll(bad, 1, 0));
	FAULTS(poll((struct pollfd *)(edge - 8), 2, 0));
	CHECK(mprotect(readonly, PAGE, PROT_READ | PROT_WRITE) == 0);
	*(struct pollfd *)readonly = (struct pollfd){ fd, POLLOUT, 0 };
	CHECK(mprotect(readonly, PAGE, PROT_READ) == 0);
	FAULTS(poll((struct pollfd *)readonly, 1, 0));
	FD_ZERO(&set);
	FD_SET(fd, &set);
	FAULTS(select(fd + 1, &set, bad, NULL, &tv));
	FAULTS(select(fd + 1, &set, NULL, NULL, bad));
	close(fd);
	close(ep);
}

/* The kernel would look no further than its table of descriptors. */
static void wide_select(void)
{
	struct { unsigned long before; fd_set set; unsigned long after[2048]; } x;
	struct timeval tv = { 0 };
	int fd = fake_connect(PORT_ECHO);

	memset(&x, 0x55, sizeof x);
	FD_ZERO(&x.set);
	FD_SET(fd, &x.set);
	CHECK(select(getdtablesize(), NULL, &x.set, NULL, &tv) == 1 && FD_ISSET(fd, &x.set));
	for (size_t i = 0; i < 2048; i++)
		CHECK(x.after[i] == 0x5555555555555555);
	close(fd);
	FD_ZERO(&x.set);
	FD_SET(1, &x.set);
	CHECK(select(getdtablesize(), NULL, &x.set, NULL, &tv) >= 0);
	for (size_t i = 0; i < 2048; i++)
		CHECK(x.after[i] == 0x5555555555555555);
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
static sigjmp_buf back;
static volatile sig_atomic_t caught;

static void on_segv(int sig, siginfo_t *info, void *uc)
{
	CHECK(sig == SIGSEGV && info->si_addr == bad && uc);
	caught++;
	siglongjmp(back, 1);
}

/* The program's handler gets the program's faults, and none of ours. */
static void own_faults(void)
{
	struct sigaction a = { .sa_sigaction = on_segv, .sa_flags = SA_SIGINFO }, old;
	int fd = fake_connect(PORT_ECHO);

	CHECK(sigaction(SIGSEGV, NULL, &old) == 0 && old.sa_handler == SIG_DFL);
	CHECK(sigaction(SIGSEGV, &a, NULL) == 0);
	FAULTS(send(fd, bad, 1, 0));
	CHECK(!caught);
	if (!sigsetjmp(back, 1))
		*(volatile int *)bad = 1;
	CHECK(caught == 1);
	FAULTS(send(fd, bad, 1, 0));
	CHECK(sigaction(SIGSEGV, NULL, &a) == 0 && a.sa_sigaction == on_segv);
	CHECK(signal(SIGSEGV, SIG_DFL) != SIG_ERR);
	FAULTS(send(fd, bad, 1, 0));
	close(fd);
}

static int end_of(void (*how)(void))
{
	int status;
	pid_t pid = fork();

	CHECK(pid >= 0);
	if (!pid) {
		how();
		_exit(0);
	}
	CHECK(waitpid(pid, &status, 0) == pid);
	return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

static void touches(void)
{
	signal(SIGSEGV, SIG_DFL);
	*(volatile int *)bad = 1;
}

static void is_told(void)
{
	signal(SIGSEGV, SIG_DFL);
	raise(SIGSEGV);
}

static void ignores(void)
{
	signal(SIGSEGV, SIG_IGN);
	raise(SIGSEGV);
}

static void ends(void)
{
	CHECK(end_of(touches) == SIGSEGV);
	CHECK(end_of(is_told) == SIGSEGV);
	CHECK(end_of(ignores) == 0);
}

#endif

int main(void)
{
	alarm(240);
	signal(SIGPIPE, SIG_IGN);
	edge = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(edge != MAP_FAILED);
	edge += 2 * PAGE;
	CHECK(mprotect(edge, PAGE, PROT_NONE) == 0);
	readonly = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(mprotect(readonly, PAGE, PROT_READ) == 0);
	fake_start(1, PNO_MIN_RING_SIZE * 2);
	copies();
	reads();
	lengths();
	writes();
	addresses();
	readiness();
	wide_select();
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
	/* The sanitizers have actions of their own for these signals. */
	own_faults();
	ends();
#endif
	fake_stop();
	printf("ok faults\n");
	return 0;
}
