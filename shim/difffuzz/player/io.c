/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Everything that moves bytes.
 */
#include "player.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/uio.h>
#include <unistd.h>

int message_flags(const char *word)
{
	static const struct {
		const char *name;
		int flag;
	} flags[] = {
		{ "peek", MSG_PEEK }, { "dontwait", MSG_DONTWAIT }, { "waitall", MSG_WAITALL },
		{ "trunc", MSG_TRUNC }, { "nosignal", MSG_NOSIGNAL }, { "more", MSG_MORE },
		{ "errqueue", MSG_ERRQUEUE }, { "oob", MSG_OOB }, { "confirm", MSG_CONFIRM }, { "eor", MSG_EOR },
	};
	int f = 0;

	for (size_t i = 0; i < sizeof flags / sizeof flags[0]; i++)
		if (has(word, flags[i].name))
			f |= flags[i].flag;
	return f;
}

static size_t length(const char *word)
{
	long n = number(word);

	return n < 0 ? 0 : n > BUFFER ? BUFFER : n;
}

static void do_send(const struct op *op)
{
	size_t n = length(op->word[2]);

	say_rc(send(slot_fd(op->word[1]), pattern(n), n, message_flags(op->word[3])));
}

/* sendto S T ADDRESS N: to the port of T. */
static void do_sendto(const struct op *op)
{
	struct sockaddr_storage ss;
	socklen_t len = address(op->word[3], slot_port(op->word[2]), &ss);
	size_t n = length(op->word[4]);

	say_rc(sendto(slot_fd(op->word[1]), pattern(n), n, message_flags(op->word[5]), (void *)&ss, len));
}

static void do_write(const struct op *op)
{
	size_t n = length(op->word[2]);

	say_rc(write(slot_fd(op->word[1]), pattern(n), n));
}

/* Three parts, the middle one empty. */
static void parts(struct iovec v[3], uint8_t *data, size_t n)
{
	v[0] = (struct iovec){ data, n / 3 };
	v[1] = (struct iovec){ data + n / 3, 0 };
	v[2] = (struct iovec){ data + n / 3, n - n / 3 };
}

static void do_writev(const struct op *op)
{
	size_t n = length(op->word[2]);
	struct iovec v[3];

	parts(v, pattern(n), n);
	say_rc(writev(slot_fd(op->word[1]), v, 3));
}

static void do_sendmsg(const struct op *op)
{
	size_t n = length(op->word[2]);
	struct iovec v[3];
	struct msghdr m = { .msg_iov = v, .msg_iovlen = 3 };

	parts(v, pattern(n), n);
	say_rc(sendmsg(slot_fd(op->word[1]), &m, message_flags(op->word[3])));
}

static void do_sendmmsg(const struct op *op)
{
	size_t n = length(op->word[2]);
	struct iovec v[3];
	struct mmsghdr m[2] = { { .msg_hdr = { .msg_iov = v, .msg_iovlen = 1 } },
				{ .msg_hdr = { .msg_iov = v + 1, .msg_iovlen = 2 } } };
	int rc;

	parts(v, pattern(n), n);
	rc = sendmmsg(slot_fd(op->word[1]), m, 2, message_flags(op->word[3]));
	say_rc(rc);
	for (int i = 0; i < rc; i++)
		say(" %u", m[i].msg_len);
}

/* With MSG_TRUNC there is a number, but no data. */
static void say_received(ssize_t n, int flags)
{
	if (flags & MSG_TRUNC)
		say_rc(n);
	else
		say_data(buffer, n);
}

static void do_recv(const struct op *op)
{
	int flags = message_flags(op->word[3]);
	size_t n = length(op->word[2]);

	say_received(recv(slot_fd(op->word[1]), buffer, n, flags), flags);
}

static void do_recvfrom(const struct op *op)
{
	struct sockaddr_storage ss = { 0 };
	socklen_t len = sizeof ss;
	int flags = message_flags(op->word[3]);
	ssize_t n = recvfrom(slot_fd(op->word[1]), buffer, length(op->word[2]), flags, (void *)&ss, &len);

	say_received(n, flags);
	if (n >= 0)
		say_addr((void *)&ss, len);
}

static void do_read(const struct op *op)
{
	say_data(buffer, read(slot_fd(op->word[1]), buffer, length(op->word[2])));
}

static void do_readv(const struct op *op)
{
	struct iovec v[3];

	parts(v, buffer, length(op->word[2]));
	say_data(buffer, readv(slot_fd(op->word[1]), v, 3));
}

static void do_recvmsg(const struct op *op)
{
	struct sockaddr_storage ss = { 0 };
	char control[64];
	struct iovec v[3];
	struct msghdr m = {
		.msg_name = &ss, .msg_namelen = sizeof ss, .msg_iov = v, .msg_iovlen = 3,
		.msg_control = control, .msg_controllen = sizeof control,
	};
	int flags = message_flags(op->word[3]);
	ssize_t n;

	parts(v, buffer, length(op->word[2]));
	n = recvmsg(slot_fd(op->word[1]), &m, flags);
	say_received(n, flags);
	if (n < 0)
		return;
	say(" flags=%#x name=%u control=%zu", m.msg_flags, m.msg_namelen, m.msg_controllen);
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c)) {
		say(" %d/%d", c->cmsg_level, c->cmsg_type);
		say_data(CMSG_DATA(c), c->cmsg_len - CMSG_LEN(0));
	}
}

static void do_recvmmsg(const struct op *op)
{
	size_t n = length(op->word[2]);
	struct iovec v[3];
	struct mmsghdr m[2] = { { .msg_hdr = { .msg_iov = v, .msg_iovlen = 1 } },
				{ .msg_hdr = { .msg_iov = v + 1, .msg_iovlen = 2 } } };
	int rc;

	parts(v, buffer, n);
	rc = recvmmsg(slot_fd(op->word[1]), m, 2, message_flags(op->word[3]) | MSG_WAITFORONE, NULL);
	say_rc(rc);
	for (int i = 0; i < rc; i++)
		say(" %u", m[i].msg_len);
}

/* sendfile S N [OFFSET]: of a file that holds the pattern. */
static void do_sendfile(const struct op *op)
{
	size_t n = length(op->word[2]);
	off_t offset = length(op->word[3]);
	size_t size = n + offset > BUFFER ? BUFFER : n + offset;
	int file = memfd_create("player", MFD_CLOEXEC);
	ssize_t rc;

	if (file < 0 || write(file, pattern(size), size) != (ssize_t)size || lseek(file, 0, SEEK_SET))
		say(" (no file)");
	rc = sendfile(slot_fd(op->word[1]), file, op->word[3] ? &offset : NULL, n);
	say_rc(rc);
	say(" offset=%ld position=%ld", (long)offset, (long)lseek(file, 0, SEEK_CUR));
	close(file);
}

/* splice FROM TO N: one of them a pipe. */
static void do_splice(const struct op *op)
{
	say_rc(splice(slot_fd(op->word[1]), NULL, slot_fd(op->word[2]), NULL, length(op->word[3]),
		      SPLICE_F_MOVE | (has(op->word[4], "dontwait") ? SPLICE_F_NONBLOCK : 0)));
}

static bool wait_for(int fd, short events)
{
	struct pollfd p = { fd, events, 0 };

	return poll(&p, 1, await_limit) == 1;
}

/*
 * flood A B: writes into A until it would block, and reads the same number of
 * bytes from B, which is how much differs from stack to stack. A is writable
 * then.
 */
static void do_flood(const struct op *op)
{
	int a = slot_fd(op->word[1]), b = slot_fd(op->word[2]);
	size_t sent = 0, got = 0;
	ssize_t n;

	while ((n = send(a, pattern(65536), 65536, MSG_DONTWAIT | MSG_NOSIGNAL)) > 0)
		sent += n;
	say(" %s then %s", sent ? "some" : "none", strerrorname_np(errno));
	while (got < sent && wait_for(b, POLLIN) && (n = recv(b, buffer, BUFFER, MSG_DONTWAIT)) > 0)
		got += n;
	say(got == sent ? ", all of it came" : ", but %zu of %zu came", got, sent);
	if (!wait_for(a, POLLOUT))
		say(", and is not writable");
}

const struct call io_calls[] = {
	{ "send", 2, do_send },
	{ "sendto", 4, do_sendto },
	{ "write", 2, do_write },
	{ "writev", 2, do_writev },
	{ "sendmsg", 2, do_sendmsg },
	{ "sendmmsg", 2, do_sendmmsg },
	{ "recv", 2, do_recv },
	{ "recvfrom", 2, do_recvfrom },
	{ "read", 2, do_read },
	{ "readv", 2, do_readv },
	{ "recvmsg", 2, do_recvmsg },
	{ "recvmmsg", 2, do_recvmmsg },
	{ "sendfile", 2, do_sendfile },
	{ "splice", 3, do_splice },
	{ "flood", 2, do_flood },
	{ NULL, 0, NULL },
};
