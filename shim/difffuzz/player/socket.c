/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The life of a descriptor: making, naming, connecting, copying, closing it.
 */
#include "player.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

bool has(const char *word, const char *flag)
{
	size_t n = strlen(flag);

	for (const char *p = word; p && *p; p = strchr(p, '|') ? strchr(p, '|') + 1 : NULL)
		if (!strncmp(p, flag, n) && (p[n] == 0 || p[n] == '|'))
			return true;
	return false;
}

int creation_flags(const char *word)
{
	return (has(word, "nonblock") ? SOCK_NONBLOCK : 0) | (has(word, "cloexec") ? SOCK_CLOEXEC : 0);
}

static void do_socket(const struct op *op)
{
	const char *kind = op->word[2];
	int domain = kind[3] == '6' ? AF_INET6 : AF_INET;
	int type = !strncmp(kind, "udp", 3) ? SOCK_DGRAM : SOCK_STREAM;

	slot_put(op->word[1], socket(domain, type | creation_flags(op->word[3]), 0));
}

/* any4, lo4, any6, lo6 and mapped (127.0.0.1 as an IPv6 address). */
socklen_t address(const char *name, uint16_t port, struct sockaddr_storage *ss)
{
	struct sockaddr_in *v4 = (void *)ss;
	struct sockaddr_in6 *v6 = (void *)ss;

	memset(ss, 0, sizeof *ss);
	if (!strcmp(name, "any4") || !strcmp(name, "lo4")) {
		v4->sin_family = AF_INET;
		v4->sin_port = port;
		v4->sin_addr.s_addr = htonl(name[0] == 'l' ? INADDR_LOOPBACK : INADDR_ANY);
		return sizeof *v4;
	}
	v6->sin6_family = AF_INET6;
	v6->sin6_port = port;
	if (!strcmp(name, "lo6"))
		v6->sin6_addr = in6addr_loopback;
	else if (!strcmp(name, "mapped"))
		v6->sin6_addr.s6_addr[10] = v6->sin6_addr.s6_addr[11] = 0xff, v6->sin6_addr.s6_addr[12] = 127,
		v6->sin6_addr.s6_addr[15] = 1;
	return sizeof *v6;
}

static void learn_port(const char *word)
{
	struct sockaddr_storage ss = { 0 };
	socklen_t len = sizeof ss;

	if (getsockname(slot_fd(word), (void *)&ss, &len) == 0)
		slot_set_port(slot_index(word), ((struct sockaddr_in *)&ss)->sin_port); /* v6's is there too */
}

/* bind S ADDRESS [T]: any port, or that of T. */
static void do_bind(const struct op *op)
{
	struct sockaddr_storage ss;
	socklen_t len = address(op->word[2], op->word[3] ? slot_port(op->word[3]) : 0, &ss);
	int rc = bind(slot_fd(op->word[1]), (void *)&ss, len);

	say_rc(rc);
	if (rc == 0)
		learn_port(op->word[1]);
}

static void do_listen(const struct op *op)
{
	say_rc(listen(slot_fd(op->word[1]), number(op->word[2])));
	learn_port(op->word[1]);
}

/* connect S T ADDRESS: to the port of T. */
static void do_connect(const struct op *op)
{
	struct sockaddr_storage ss;
	socklen_t len = address(op->word[3], slot_port(op->word[2]), &ss);

	say_rc(connect(slot_fd(op->word[1]), (void *)&ss, len));
}

/* disconnect S: connect to no address, which undoes. */
static void do_disconnect(const struct op *op)
{
	struct sockaddr none = { .sa_family = AF_UNSPEC };

	say_rc(connect(slot_fd(op->word[1]), &none, sizeof none));
}

/* accept L S [FLAGS]: accept4 if there are flags. */
static void do_accept(const struct op *op)
{
	struct sockaddr_storage ss = { 0 };
	socklen_t len = sizeof ss;
	int fd = slot_fd(op->word[1]);

	if (op->word[3])
		fd = accept4(fd, (void *)&ss, &len, creation_flags(op->word[3]));
	else
		fd = accept(fd, (void *)&ss, &len);
	slot_put(op->word[2], fd);
	if (fd >= 0)
		say_addr((void *)&ss, len);
}

static void do_shutdown(const struct op *op)
{
	const char *how = op->word[2];

	say_rc(shutdown(slot_fd(op->word[1]), !strcmp(how, "rd") ? SHUT_RD : !strcmp(how, "wr") ? SHUT_WR : SHUT_RDWR));
}

/* close S [range] */
static void do_close(const struct op *op)
{
	int fd = slot_fd(op->word[1]);

	say_rc(op->word[2] ? close_range(fd, fd, 0) : close(fd));
	slot_clear(op->word[1]);
}

static void say_name(int rc, const struct sockaddr_storage *ss, socklen_t len)
{
	say_rc(rc);
	if (rc == 0)
		say_addr((const void *)ss, len);
}

static void do_sockname(const struct op *op)
{
	struct sockaddr_storage ss = { 0 };
	socklen_t len = sizeof ss;
	int rc = getsockname(slot_fd(op->word[1]), (void *)&ss, &len);

	say_name(rc, &ss, len);
}

static void do_peername(const struct op *op)
{
	struct sockaddr_storage ss = { 0 };
	socklen_t len = sizeof ss;
	int rc = getpeername(slot_fd(op->word[1]), (void *)&ss, &len);

	say_name(rc, &ss, len);
}

/* dup S T [dup2|dup3|fcntl|cloexec]: a copy of S goes to T. */
static void do_dup(const struct op *op)
{
	int from = slot_fd(op->word[1]), to = slot_fd(op->word[2]), fd;
	const char *how = op->word[3] ? op->word[3] : "dup";
	uint16_t port = slot_port(op->word[1]);

	if (!strcmp(how, "dup2") || !strcmp(how, "dup3")) {
		fd = !strcmp(how, "dup2") ? dup2(from, to) : dup3(from, to, O_CLOEXEC);
		if (fd < 0) {
			say_rc(-1);
			return;
		}
		say(fd == to ? " ok" : " another descriptor");
	} else {
		fd = !strcmp(how, "dup") ? dup(from) : fcntl(from, !strcmp(how, "fcntl") ? F_DUPFD : F_DUPFD_CLOEXEC, 3);
		slot_put(op->word[2], fd);
	}
	if (fd >= 0)
		slot_set_port(slot_index(op->word[2]), port);
}

static void do_nonblock(const struct op *op)
{
	int fd = slot_fd(op->word[1]), on = number(op->word[2]), flags;

	if (op->word[3]) {
		say_rc(ioctl(fd, FIONBIO, &on));
		return;
	}
	flags = fcntl(fd, F_GETFL);
	if (flags < 0)
		say_rc(-1);
	else
		say_rc(fcntl(fd, F_SETFL, on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK));
}

static void do_getfl(const struct op *op)
{
	int fd = slot_fd(op->word[1]);

	say_rc(fcntl(fd, F_GETFL));
	say_rc(fcntl(fd, F_GETFD));
}

/* setfd S 0|1 [range]: close on exec. */
static void do_setfd(const struct op *op)
{
	int fd = slot_fd(op->word[1]);

	if (op->word[3])
		say_rc(close_range(fd, fd, CLOSE_RANGE_CLOEXEC));
	else
		say_rc(fcntl(fd, F_SETFD, number(op->word[2])));
}

static void do_fstat(const struct op *op)
{
	struct stat st;
	int fd = slot_fd(op->word[1]), rc = fstat(fd, &st);

	say_rc(rc);
	if (rc == 0)
		say(" type=%o isfdtype=%d", st.st_mode & S_IFMT, isfdtype(fd, S_IFSOCK));
}

static void do_fionread(const struct op *op)
{
	int n = -1, rc = ioctl(slot_fd(op->word[1]), FIONREAD, &n);

	say_rc(rc);
	if (rc == 0)
		say(" n=%d", n);
}

static void do_pipe(const struct op *op)
{
	int fds[2] = { -1, -1 };

	if (pipe2(fds, creation_flags(op->word[3]) & SOCK_NONBLOCK ? O_NONBLOCK : 0) < 0) {
		say_rc(-1);
		return;
	}
	slot_put(op->word[1], fds[0]);
	slot_put(op->word[2], fds[1]);
}

static void do_unix(const struct op *op)
{
	int fds[2] = { -1, -1 };

	if (socketpair(AF_UNIX, SOCK_STREAM | creation_flags(op->word[3]), 0, fds) < 0) {
		say_rc(-1);
		return;
	}
	slot_put(op->word[1], fds[0]);
	slot_put(op->word[2], fds[1]);
}

static void do_eventfd(const struct op *op)
{
	slot_put(op->word[1], eventfd(number(op->word[2]), EFD_NONBLOCK));
}

/* pass S T: S goes over a Unix socket, what arrives is T. */
static void do_pass(const struct op *op)
{
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} u = { 0 };
	char byte = 'x';
	struct iovec iov = { &byte, 1 };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = u.buf, .msg_controllen = sizeof u.buf };
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	int ends[2], fd = slot_fd(op->word[1]);
	uint16_t port = slot_port(op->word[1]);

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &fd, sizeof fd);
	if (socketpair(AF_UNIX, SOCK_DGRAM, 0, ends) < 0)
		return;
	say_rc(sendmsg(ends[0], &m, MSG_DONTWAIT));
	m.msg_controllen = sizeof u.buf;
	if (recvmsg(ends[1], &m, MSG_DONTWAIT) > 0 && (c = CMSG_FIRSTHDR(&m))) {
		memcpy(&fd, CMSG_DATA(c), sizeof fd);
		slot_put(op->word[2], fd);
		slot_set_port(slot_index(op->word[2]), port);
	}
	close(ends[0]);
	close(ends[1]);
}

const struct call socket_calls[] = {
	{ "socket", 2, do_socket },
	{ "bind", 2, do_bind },
	{ "listen", 2, do_listen },
	{ "connect", 3, do_connect },
	{ "disconnect", 1, do_disconnect },
	{ "accept", 2, do_accept },
	{ "shutdown", 2, do_shutdown },
	{ "close", 1, do_close },
	{ "sockname", 1, do_sockname },
	{ "peername", 1, do_peername },
	{ "dup", 2, do_dup },
	{ "nonblock", 2, do_nonblock },
	{ "getfl", 1, do_getfl },
	{ "setfd", 2, do_setfd },
	{ "fstat", 1, do_fstat },
	{ "fionread", 1, do_fionread },
	{ "pipe", 2, do_pipe },
	{ "unix", 2, do_unix },
	{ "eventfd", 2, do_eventfd },
	{ "pass", 2, do_pass },
	{ NULL, 0, NULL },
};
