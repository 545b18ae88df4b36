/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Sockets as descriptors: copies, flags, ioctl, ranges, streams of stdio, and
 * what is not a socket.
 */
#include "conf.h"

#include <linux/close_range.h>

extern int isfdtype(int fd, int type);

static char b[64];

static void copies(void)
{
	int c, s, d, e;

	pair(AF_INET, &c, &s);
	d = FD(dup(s));
	R(fcntl(d, F_GETFD));
	R(send(c, "abc", 3, 0));
	R(recv(d, b, 1, 0));
	R(close(s));
	R(recv(s, b, 1, 0));
	R(recv(d, b, 1, 0));
	e = FD(dup2(d, s));
	show("as asked: %d", e == s);
	R(close(d));
	R(recv(s, b, 1, 0));
	show("%c", b[0]);
	e = dup2(s, s);
	show("to itself: %d", e == s);
	R(dup3(s, s, 0));
	d = FD(dup3(s, d, O_CLOEXEC));
	R(fcntl(d, F_GETFD));
	R(dup3(s, d, 0x1000));
	R(close(d));
	d = FD(fcntl(s, F_DUPFD, 100));
	show("number %d", d);
	e = FD(fcntl(s, F_DUPFD_CLOEXEC, 100));
	show("number %d", e);
	R(fcntl(e, F_GETFD));
	R(fcntl(s, F_DUPFD, -1));
	R(fcntl(s, F_DUPFD, 1 << 30));
	/* flags of the file are common to the copies */
	R(fcntl(d, F_SETFL, O_NONBLOCK));
	R(fcntl(s, F_GETFL));
	R(recv(s, b, 1, 0));
	R(close(s));
	R(close(e));
	R(shutdown(d, SHUT_WR));
	R(recv(c, b, 1, 0));
	R(close(d));
	close(c);
	FD(dup(-1));
	FD(dup2(-1, 5));
	FD(dup(c));
}

/* dup2 closes what was there: the peer notices. */
static void over_another(void)
{
	int c, s, c2, s2, p[2];

	pair(AF_INET, &c, &s);
	pair(AF_INET, &c2, &s2);
	R(dup2(s2, s) == s);
	R(recv(c, b, 1, 0));
	R(send(s, "x", 1, 0));
	R(recv(c2, b, 1, 0));
	close(s2);
	need(pipe(p) == 0, "pipe");
	R(dup2(p[0], s) == s); /* now the last copy of s2 is gone */
	R(recv(c2, b, 1, 0));
	R(write(p[1], "pipe", 4));
	R(read(s, b, 4));
	R(recv(s, b, 4, 0));
	R(dup2(c2, p[0]) == p[0]); /* a socket over a pipe */
	OPT(p[0], SOL_SOCKET, SO_TYPE);
	close(c);
	close(c2);
	close(s);
	close(p[0]);
	close(p[1]);
}

static void flags(void)
{
	int c, s, on = 1;

	pair(AF_INET, &c, &s);
	R(fcntl(s, F_GETFL));
	R(ioctl(s, FIONBIO, &on));
	R(fcntl(s, F_GETFL));
	R(recv(s, b, 1, 0));
	on = 0;
	R(ioctl(s, FIONBIO, &on));
	R(fcntl(s, F_GETFL));
	R(fcntl(s, F_SETFL, O_NONBLOCK | O_APPEND));
	R(fcntl(s, F_GETFL));
	R(fcntl(s, F_SETFL, O_RDONLY));
	R(fcntl(s, F_GETFL));
	R(fcntl(s, F_SETFD, FD_CLOEXEC));
	R(fcntl(s, F_GETFD));
	R(ioctl(s, FIONCLEX));
	R(fcntl(s, F_GETFD));
	R(ioctl(s, FIOCLEX));
	R(fcntl(s, F_GETFD));
	R(fcntl(c, F_GETOWN));
	R(fcntl(c, F_SETOWN, getpid()));
	R(fcntl(c, F_GETOWN) == getpid());
	R(fcntl(c, F_GETLK, b));
	R(fcntl(c, 12345));
	close(c);
	close(s);
}

static void controls(void)
{
	struct sockaddr_storage at;
	int c, s, n = -1, l = listener(AF_INET, &at), fresh = socket(AF_INET, SOCK_STREAM, 0);

	pair(AF_INET, &c, &s);
	R(ioctl(s, FIONREAD, &n));
	show("%d", n);
	R(send(c, "abcde", 5, 0));
	await_bytes(s, 5);
	R(ioctl(s, FIONREAD, &n));
	show("%d", n);
	R(recv(s, b, 2, 0));
	R(ioctl(s, FIONREAD, &n));
	show("%d", n);
	R(shutdown(c, SHUT_WR));
	AWAIT(s, POLLRDHUP);
	R(ioctl(s, FIONREAD, &n));
	show("%d", n);
	R(recv(s, b, 3, 0));
	R(ioctl(s, FIONREAD, &n));
	show("%d", n);
	for (int i = 0; i < 1000 && ioctl(c, TIOCOUTQ, &n) == 0 && n > 0; i++)
		nap(2);
	R(ioctl(c, TIOCOUTQ, &n));
	show("%d", n);
	R(ioctl(l, FIONREAD, &n));
	R(ioctl(fresh, FIONREAD, &n));
	show("%d", n);
	R(ioctl(s, SIOCATMARK, &n));
	show("%d", n);
	R(ioctl(s, 0x5413 /* TIOCGWINSZ */, b));
	R(isatty(s));
	R(ioctl(s, 0x12345678, &n));
	close(c);
	close(s);
	close(l);
	close(fresh);
}

static void ranges(void)
{
	int c, s, d[3], p[2];

	pair(AF_INET, &c, &s);
	for (int i = 0; i < 3; i++)
		d[i] = fcntl(s, F_DUPFD, 200);
	close(s);
	need(pipe(p) == 0, "pipe");
	R(close_range(d[0], d[1], 0));
	R(send(c, "x", 1, 0));
	R(recv(d[0], b, 1, 0));
	R(recv(d[2], b, 1, 0));
	R(close_range(d[2], d[2], CLOSE_RANGE_CLOEXEC));
	R(fcntl(d[2], F_GETFD));
	R(close_range(5, 4, 0));
	R(close_range(1000, 2000, 0x100));
	R(close_range(d[2], ~0u, 0));
	R(recv(c, b, 1, 0));
	close(c);

	/* sockets go on working after all else has been closed */
	pair(AF_INET, &c, &s);
	int low = c < s ? c : s;
	closefrom((c > s ? c : s) + 1);
	R(send(c, "y", 1, 0));
	R(recv(s, b, 1, 0));
	R(write(p[1], "pipe", 4) == (p[1] < low ? 4 : -1));
	closefrom(low);
	R(send(c, "y", 1, 0));
	pair(AF_INET, &c, &s);
	R(send(c, "z", 1, 0));
	R(recv(s, b, 1, 0));
	close(c);
	close(s);
}

/* stdio of libc makes its own calls, which do not pass the shim. */
static void stdio(void)
{
	struct stat st;
	int c, s;

	pair(AF_INET, &c, &s);
	R(fstat(s, &st));
	show("mode %o, %ld bytes", st.st_mode, (long)st.st_size);
	R(isfdtype(s, S_IFSOCK));
	R(isatty(s));
	FILE *f = fdopen(dup(s), "r+");
	show("opened: %d", f != NULL);
	R(fclose(f));
	R(send(c, "x", 1, 0));
	R(recv(s, b, 1, 0));
	close(c);
	close(s);
}

static void not_sockets(void)
{
	struct sockaddr_storage ss = loopback(AF_INET, 1);
	socklen_t len = sizeof ss;
	struct msghdr m = { 0 };
	struct mmsghdr mm = { 0 };
	int p[2], closed, v = 0;

	need(pipe(p) == 0, "pipe");
	closed = dup(p[0]);
	close(closed);
	int fds[] = { p[1], closed, -1, 1 << 20 };
	static const char *const names[] = { "pipe", "closed", "negative", "beyond" };

	for (int i = 0; i < 4; i++) {
		int fd = fds[i];

		show("%s", names[i]);
		R(bind(fd, SA(ss), sizeof(struct sockaddr_in)));
		R(listen(fd, 1));
		FD(accept(fd, NULL, NULL));
		FD(accept4(fd, NULL, NULL, SOCK_NONBLOCK));
		R(connect(fd, SA(ss), sizeof(struct sockaddr_in)));
		R(shutdown(fd, SHUT_RD));
		R(getsockname(fd, SA(ss), &len));
		R(getpeername(fd, SA(ss), &len));
		R(getsockopt(fd, SOL_SOCKET, SO_ERROR, &v, &(socklen_t){ sizeof v }));
		R(setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &v, sizeof v));
		R(send(fd, "x", 1, 0));
		R(sendto(fd, "x", 1, 0, NULL, 0));
		R(sendmsg(fd, &m, 0));
		R(sendmmsg(fd, &mm, 1, 0));
		R(recv(fd, b, 1, 0));
		R(recvfrom(fd, b, 1, 0, NULL, NULL));
		R(recvmsg(fd, &m, 0));
		R(recvmmsg(fd, &mm, 1, 0, NULL));
	}
	R(read(closed, b, 1));
	R(write(closed, b, 1));
	R(readv(closed, &(struct iovec){ b, 1 }, 1));
	R(writev(closed, &(struct iovec){ b, 1 }, 1));
	R(ioctl(closed, FIONREAD, &v));
	R(fcntl(closed, F_GETFL));
	R(close(closed));
	R(close(-1));
	close(p[0]);
	close(p[1]);
}

int main(void)
{
	SECTION("copies");
	copies();
	SECTION("over another");
	over_another();
	SECTION("flags");
	flags();
	SECTION("ioctl");
	controls();
	SECTION("ranges");
	ranges();
	SECTION("stdio");
	stdio();
	SECTION("not sockets");
	not_sockets();
	return 0;
}
