/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Calls through syscall(), as libuv closes its descriptors: they mean the same
 * sockets, and a number that was closed so belongs to the next file. So do the C
 * library's other names for some of its calls.
 */
#include <sched.h>
#include <sys/epoll.h>
#include <sys/syscall.h>

#include "conf.h"

/* Exported by the C library, and declared in no header. */
ssize_t __read(int fd, void *buf, size_t len);
ssize_t __write(int fd, const void *buf, size_t len);
ssize_t __send(int fd, const void *buf, size_t len, int flags);
int __connect(int fd, const struct sockaddr *addr, socklen_t len);
int __close(int fd);
int __dup2(int from, int to);
int __fcntl(int fd, int cmd, ...);
int __poll(struct pollfd *fds, nfds_t n, int timeout);
int __select(int n, fd_set *r, fd_set *w, fd_set *e, struct timeval *timeout);
int __pipe(int fd[2]);
pid_t __fork(void);
pid_t _Fork(void);
int __clone(int (*fn)(void *), void *stack, int flags, void *arg, ...);

static void reused(void)
{
	int c, s, p[2];
	char byte;

	pair(AF_INET, &c, &s);
	R(syscall(SYS_close, s));
	await_events(c, POLLIN);
	R(read(c, &byte, 1));
	R(syscall(SYS_close, c));
	R(syscall(SYS_close, c));

	/* The numbers are now those of a pipe. */
	need(pipe(p) == 0, "pipe");
	R(write(p[1], "x", 1));
	R(read(p[0], &byte, 1));
	READY(p[0]);
	READY(p[1]);
	close(p[0]);
	close(p[1]);
}

static void traffic(int family)
{
	struct sockaddr_storage at, who;
	struct iovec iov = { .iov_base = "vector", .iov_len = 6 };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1 };
	socklen_t len = sizeof who;
	char buf[32];
	int l, c, s, one = 1, v = 0;

	l = FD(syscall(SYS_socket, family, SOCK_STREAM, 0));
	at = loopback(family, 0);
	R(syscall(SYS_setsockopt, l, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one));
	R(syscall(SYS_bind, l, &at, addr_len(&at)));
	R(syscall(SYS_listen, l, 5));
	R(syscall(SYS_getsockname, l, &at, &len));
	c = FD(syscall(SYS_socket, family, SOCK_STREAM, 0));
	R(syscall(SYS_connect, c, &at, addr_len(&at)));
	s = FD(syscall(SYS_accept4, l, NULL, NULL, SOCK_CLOEXEC));

	R(syscall(SYS_write, c, "plain", 5));
	await_events(s, POLLIN);
	R(syscall(SYS_read, s, buf, sizeof buf));
	show_bytes("read", buf, 5);
	R(syscall(SYS_writev, s, &iov, 1));
	await_events(c, POLLIN);
	R(syscall(SYS_ioctl, c, FIONREAD, &v));
	show("%d bytes", v);
	R(syscall(SYS_recvfrom, c, buf, sizeof buf, MSG_PEEK, NULL, NULL));
	R(syscall(SYS_recvfrom, c, buf, sizeof buf, 0, NULL, NULL));
	show_bytes("recvfrom", buf, 6);
	R(syscall(SYS_sendmsg, c, &m, 0));
	await_events(s, POLLIN);
	iov.iov_base = buf;
	iov.iov_len = sizeof buf;
	R(syscall(SYS_recvmsg, s, &m, 0));
	R(syscall(SYS_sendto, s, "to", 2, MSG_NOSIGNAL, NULL, 0));
	await_events(c, POLLIN);
	R(syscall(SYS_readv, c, &iov, 1));
	R(syscall(SYS_fcntl, c, F_SETFL, O_NONBLOCK));
	R(syscall(SYS_read, c, buf, sizeof buf));
	len = sizeof v;
	R(syscall(SYS_getsockopt, c, SOL_SOCKET, SO_ERROR, &v, &len));
	R(syscall(SYS_shutdown, c, SHUT_WR));
	await_events(s, POLLIN);
	R(syscall(SYS_read, s, buf, sizeof buf));
	R(syscall(SYS_close, c));
	R(syscall(SYS_close, s));
	R(syscall(SYS_close, l));
}

static void readiness(void)
{
	struct epoll_event ev = { .events = EPOLLIN | EPOLLOUT };
	struct pollfd p = { .events = POLLIN | POLLOUT };
	struct timespec none = { 0 };
	int c, s, ep, copy;
	fd_set out;

	pair(AF_INET, &c, &s);
	ep = FD(syscall(SYS_epoll_create1, 0));
	R(syscall(SYS_epoll_ctl, ep, EPOLL_CTL_ADD, c, &ev));
	R(syscall(SYS_epoll_pwait, ep, &ev, 1, 1000, NULL, 8));
	show_events("epoll", ev.events);
	p.fd = c;
	R(syscall(SYS_ppoll, &p, 1, &none, NULL, 8));
	show_events("ppoll", p.revents);
	FD_ZERO(&out);
	FD_SET(c, &out);
	R(syscall(SYS_pselect6, c + 1, NULL, &out, NULL, &none, NULL));
	copy = FD(syscall(SYS_dup, c));
	R(syscall(SYS_close, c));
	R(write(copy, "x", 1));
	await_events(s, POLLIN);
	R(syscall(SYS_dup3, s, copy, 0));
	R(syscall(SYS_close_range, copy, copy, 0));
	R(syscall(SYS_close, s));
	close(ep);
}

static int ends[2];

/* Sends back what comes. */
static int child(void *arg)
{
	char b[3000];
	ssize_t n;

	need(!strcmp(arg, "mine"), "argument");
	close(ends[0]);
	while ((n = read(ends[1], b, sizeof b)) > 0)
		write_all(ends[1], b, n);
	return n == 0 ? 3 : 2;
}

static pid_t by_syscall(void)
{
	pid_t pid = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);

	if (pid == 0)
		_exit(child("mine"));
	return pid;
}

static char stack[1 << 18];

static pid_t by_clone(void)
{
	return clone(child, stack + sizeof stack, SIGCHLD, "mine");
}

static pid_t by_other_name(void)
{
	pid_t told = -1, pid = __clone(child, stack + sizeof stack, CLONE_PARENT_SETTID | SIGCHLD, "mine", &told);

	show("its number is told: %d", told == pid);
	return pid;
}

static void cloned(pid_t (*make)(void))
{
	char sent[3000], back[3000];
	int c, s, status;
	pid_t pid;

	pair(AF_INET, &c, &s);
	ends[0] = c;
	ends[1] = s;
	fflush(stdout);
	pid = make();
	need(pid > 0, "clone");
	R(close(s));
	fill(sent, sizeof sent);
	write_all(c, sent, sizeof sent);
	read_all(c, back, sizeof back);
	show_bytes("came back", back, sizeof back);
	R(shutdown(c, SHUT_WR));
	need(waitpid(pid, &status, 0) == pid, "waitpid");
	show("the child ended with %d, signal %d", WEXITSTATUS(status), WTERMSIG(status));
	close(c);
}

static void names(void)
{
	struct sockaddr_storage at;
	struct pollfd p = { .events = POLLIN };
	struct timeval none = { 0 };
	char buf[32];
	int l = listener(AF_INET, &at), c, s, copy, ends[2];
	fd_set out;

	c = socket(AF_INET, SOCK_STREAM, 0);
	R(__connect(c, (struct sockaddr *)&at, addr_len(&at)));
	s = accept(l, NULL, NULL);
	R(__send(c, "send", 4, 0));
	p.fd = s;
	R(__poll(&p, 1, 10000));
	R(__read(s, buf, sizeof buf));
	R(__write(s, "write", 5));
	await_events(c, POLLIN);
	R(__read(c, buf, sizeof buf));
	R(__fcntl(c, F_SETFL, O_NONBLOCK));
	R(__read(c, buf, sizeof buf));
	FD_ZERO(&out);
	FD_SET(c, &out);
	R(__select(c + 1, NULL, &out, NULL, &none));
	R(__pipe(ends));
	copy = ends[0];
	R(__dup2(s, copy) == copy);
	R(__close(s));
	R(__write(copy, "copy", 4));
	await_events(c, POLLIN);
	R(__read(c, buf, sizeof buf));
	R(__close(copy));
	await_events(c, POLLIN);
	R(__read(c, buf, sizeof buf));
	R(__close(ends[1]));
	R(__close(c));
	R(__close(l));
}

/* Each child says a word; its parent has the connection afterwards as before. */
static void forks(const char *what, pid_t (*make)(void))
{
	char buf[32];
	int c, s, status;
	pid_t pid;

	pair(AF_INET, &c, &s);
	pid = make();
	if (pid == 0)
		_exit(write(s, "child", 5) == 5 ? 5 : 1);
	need(waitpid(pid, &status, 0) == pid, "waitpid");
	show("%s ended with %d, signal %d", what, WEXITSTATUS(status), WTERMSIG(status));
	R(read(c, buf, sizeof buf));
	R(write(s, "parent", 6));
	await_events(c, POLLIN);
	R(read(c, buf, sizeof buf));
	R(close(s));
	R(read(c, buf, sizeof buf));
	close(c);
}

int main(void)
{
	SECTION("a number closed and used again");
	reused();
	SECTION("IPv4");
	traffic(AF_INET);
	SECTION("IPv6");
	traffic(AF_INET6);
	SECTION("readiness");
	readiness();
	SECTION("clone");
	cloned(by_syscall);
	cloned(by_clone);
	cloned(by_other_name);
	SECTION("other names");
	names();
	forks("__fork", __fork);
	forks("_Fork", _Fork);
	return 0;
}
