/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Several buffers, several messages: readv and writev, sendmsg and recvmsg,
 * sendmmsg and recvmmsg, and the positioned calls, which sockets refuse.
 */
#include "conf.h"

#include <limits.h>
#include <time.h>

static char x[64], y[64], z[64];
static volatile int minus_one = -1; /* or the compiler objects */

static void vectors(void)
{
	struct iovec out[] = { { "abc", 3 }, { NULL, 0 }, { "defg", 4 }, { "", 0 } };
	struct iovec in[] = { { x, 2 }, { NULL, 0 }, { y, 3 }, { z, 20 } };
	int c, s;

	pair(AF_INET, &c, &s);
	R(writev(c, out, 4));
	await_bytes(s, 7);
	R(readv(s, in, 4));
	show_bytes("x", x, 2);
	show_bytes("y", y, 3);
	show_bytes("z", z, 2);
	R(writev(c, out, 0));
	R(writev(c, out + 1, 1));
	R(writev(c, out, 1));
	R(readv(s, in + 1, 1));
	R(readv(s, in, 0));
	R(readv(s, in, 1));
	await_bytes(s, 1);
	R(readv(s, in, 1));
	close(c);
	close(s);
}

static void limits(void)
{
	static struct iovec many[IOV_MAX + 1];
	static char bytes[IOV_MAX + 1];
	struct iovec huge[] = { { bytes, SSIZE_MAX }, { bytes, 1 } };
	struct iovec negative = { bytes, (size_t)-1 };
	struct msghdr m = { .msg_iov = many, .msg_iovlen = IOV_MAX + 1 };
	int c, s;

	pair(AF_INET, &c, &s);
	for (int i = 0; i <= IOV_MAX; i++)
		many[i] = (struct iovec){ bytes + i, 1 };
	memset(bytes, 'n', sizeof bytes);
	R(writev(c, many, IOV_MAX));
	await_bytes(s, IOV_MAX);
	R(readv(s, many, IOV_MAX));
	R(writev(c, many, IOV_MAX + 1));
	R(readv(s, many, IOV_MAX + 1));
	R(writev(c, many, minus_one));
	R(readv(s, many, minus_one));
	R(sendmsg(c, &m, 0));
	R(recvmsg(s, &m, 0));
	m.msg_iovlen = (size_t)-1;
	R(sendmsg(c, &m, 0));
	R(recvmsg(s, &m, 0));
	R(writev(c, &negative, 1));
	R(readv(s, &negative, 1));
	m.msg_iov = &negative;
	m.msg_iovlen = 1;
	R(sendmsg(c, &m, 0));
	R(writev(c, huge + 1, 1));
	huge[1].iov_len = 0;
	R(recv(s, bytes, 1, 0));
	show("%c", bytes[0]);
	close(c);
	close(s);
}

static void messages(void)
{
	struct sockaddr_storage name;
	char control[64];
	struct iovec out[] = { { "abc", 3 }, { "defg", 4 } }, in[] = { { x, 2 }, { y, 60 } };
	struct msghdr o = { .msg_iov = out, .msg_iovlen = 2 };
	struct msghdr m = { .msg_name = &name, .msg_namelen = sizeof name, .msg_iov = in, .msg_iovlen = 2,
			    .msg_control = control, .msg_controllen = sizeof control, .msg_flags = 0x77 };
	int c, s;

	pair(AF_INET, &c, &s);
	R(sendmsg(c, &o, 0));
	await_bytes(s, 7);
	R(recvmsg(s, &m, MSG_PEEK));
	show("name %u, control %zu, flags %#x", m.msg_namelen, m.msg_controllen, m.msg_flags);
	m.msg_namelen = 5;
	R(recvmsg(s, &m, 0));
	show("name %u, control %zu, flags %#x", m.msg_namelen, m.msg_controllen, m.msg_flags);
	show_bytes("x", x, 2);
	show_bytes("y", y, 5);
	m.msg_namelen = 5;
	m.msg_controllen = 10;
	m.msg_flags = 0x77;
	R(recvmsg(s, &m, MSG_DONTWAIT));
	show("name %u, control %zu, flags %#x", m.msg_namelen, m.msg_controllen, m.msg_flags);
	R(sendmsg(c, &o, 0));
	await_bytes(s, 7);
	R(recvmsg(s, &m, MSG_TRUNC));
	show("flags %#x", m.msg_flags);
	R(recvmsg(s, &m, MSG_CMSG_CLOEXEC | MSG_DONTWAIT));
	o.msg_iovlen = 0;
	R(sendmsg(c, &o, 0));
	R(sendmsg(c, &o, MSG_EOR));
	m.msg_iovlen = 0;
	R(recvmsg(s, &m, MSG_DONTWAIT));
	close(c);
	close(s);
}

static void many_messages(void)
{
	struct iovec out[] = { { "abc", 3 }, { "de", 2 }, { "fghi", 4 } };
	struct iovec in[] = { { x, 4 }, { y, 4 }, { z, 4 } };
	struct mmsghdr o[3] = { 0 }, m[3] = { 0 };
	struct timespec none = { 0 }, bad = { 0, -1 };
	int c, s;

	pair(AF_INET, &c, &s);
	for (int i = 0; i < 3; i++) {
		o[i].msg_hdr.msg_iov = &out[i];
		m[i].msg_hdr.msg_iov = &in[i];
		o[i].msg_hdr.msg_iovlen = m[i].msg_hdr.msg_iovlen = 1;
	}
	R(sendmmsg(c, o, 3, 0));
	show("%u %u %u", o[0].msg_len, o[1].msg_len, o[2].msg_len);
	await_bytes(s, 9);
	R(recvmmsg(s, m, 3, 0, NULL));
	show("%u %u %u", m[0].msg_len, m[1].msg_len, m[2].msg_len);
	show_bytes("x", x, 4);
	show_bytes("y", y, 4);
	show_bytes("z", z, 1);
	R(sendmmsg(c, o, 0, 0));
	R(recvmmsg(s, m, 0, 0, NULL));
	R(recvmmsg(s, m, 3, MSG_DONTWAIT, NULL));
	R(sendmmsg(c, o, 1, 0));
	R(recvmmsg(s, m, 3, MSG_WAITFORONE, NULL));
	show("%u", m[0].msg_len);
	R(recvmmsg(s, m, 3, MSG_DONTWAIT, &bad));
	R(sendmmsg(c, o, 1, 0));
	await_bytes(s, 3);
	R(recvmmsg(s, m, 3, 0, &none)); /* over after the first */
	R(shutdown(c, SHUT_WR));
	AWAIT(s, POLLRDHUP);
	R(recvmmsg(s, m, 3, 0, NULL)); /* the end, once for each */
	show("%u %u %u", m[0].msg_len, m[1].msg_len, m[2].msg_len);
	R(sendmmsg(c, o, 3, MSG_NOSIGNAL));
	close(c);
	close(s);
}

static void positioned(void)
{
	struct iovec v = { x, 4 };
	int c, s;

	pair(AF_INET, &c, &s);
	send(c, "abcdef", 6, 0);
	await_bytes(s, 6);
	R(pread(s, x, 4, 0));
	R(pwrite(c, x, 4, 0));
	R(preadv(s, &v, 1, 0));
	R(pwritev(c, &v, 1, 0));
	R(preadv2(s, &v, 1, 0, 0));
	R(lseek(s, 0, SEEK_CUR));
	R(ftruncate(s, 0));
	R(fsync(s));
	R(preadv2(s, &v, 1, -1, 0));
	show_bytes("x", x, 4);
	R(pwritev2(c, &v, 1, -1, 0));
	await_bytes(s, 6);
	R(read(s, y, 6));
	show_bytes("y", y, 6);
	close(c);
	close(s);
}

int main(void)
{
	SECTION("readv and writev");
	vectors();
	SECTION("limits");
	limits();
	SECTION("sendmsg and recvmsg");
	messages();
	SECTION("sendmmsg and recvmmsg");
	many_messages();
	SECTION("positioned");
	positioned();
	return 0;
}
