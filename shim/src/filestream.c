/* SPDX-License-Identifier: Apache-2.0 */

/*
 * FILE streams over offloaded sockets.
 *
 * libc's streams read and write by calls inside libc, which do not come by
 * here: they would meet the placeholder. So fdopen() of a socket gives a stream
 * with functions of its own, which are the shim's read and write, and fileno()
 * knows its descriptor.
 *
 * A server in the style of inetd has its connection as standard input and
 * output, by exec or by dup2. While one of the three descriptors is an
 * offloaded socket, stdin, stdout or stderr is such a stream; what the former
 * one had not written yet goes along.
 */
#include "filestream.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdio_ext.h>
#include <stdlib.h>
#include <unistd.h>

#include "fdtable.h"
#include "real.h"
#include "sock.h"

struct stream {
	struct stream *next;
	FILE *file;
	int fd;
};

static struct stream *streams;
static pno_lock_t lock; /* a leaf */

static FILE *libcs[3], *ours[3];

static FILE **standard(int fd)
{
	return fd == 0 ? &stdin : fd == 1 ? &stdout : &stderr;
}

static bool is_socket(int fd)
{
	struct pno_obj *o = pno_fd_obj(fd);

	return unlikely(o && o->kind == PNO_KIND_SOCK);
}

static ssize_t stream_read(void *cookie, char *buf, size_t n)
{
	return read(((struct stream *)cookie)->fd, buf, n);
}

/* libc takes no less than all, and 0 for a failure. */
static ssize_t stream_write(void *cookie, const char *buf, size_t n)
{
	size_t done = 0;

	while (done < n) {
		ssize_t k = write(((struct stream *)cookie)->fd, buf + done, n - done);

		if (k <= 0)
			break;
		done += k;
	}
	return done;
}

static int stream_close(void *cookie)
{
	struct stream *t = cookie, **p;
	int fd = t->fd;

	pno_lock(&lock);
	for (p = &streams; *p && *p != t; p = &(*p)->next)
		;
	if (*p)
		*p = t->next;
	pno_unlock(&lock);
	if ((unsigned)fd <= 2 && ours[fd] == t->file) {
		if (*standard(fd) == ours[fd])
			*standard(fd) = libcs[fd];
		ours[fd] = NULL;
	}
	free(t);
	return close(fd);
}

static FILE *open_stream(int fd, const char *mode)
{
	static const cookie_io_functions_t how = { stream_read, stream_write, NULL, stream_close };
	struct stream *t = malloc(sizeof *t);

	if (!t)
		return NULL;
	t->fd = fd;
	t->file = fopencookie(t, mode, how);
	if (!t->file) {
		free(t);
		return NULL;
	}
	pno_lock(&lock);
	t->next = streams;
	streams = t;
	pno_unlock(&lock);
	return t->file;
}

PNO_EXPORT FILE *fdopen(int fd, const char *mode)
{
	PNO_ENTER();
	return is_socket(fd) ? open_stream(fd, mode) : real.fdopen(fd, mode);
}

/* -1: not one of ours. */
static int number(FILE *f)
{
	int fd = -1;

	if (likely(!__atomic_load_n(&streams, __ATOMIC_RELAXED)))
		return -1;
	pno_lock(&lock);
	for (struct stream *t = streams; t; t = t->next)
		if (t->file == f)
			fd = t->fd;
	pno_unlock(&lock);
	return fd;
}

PNO_EXPORT int fileno(FILE *f)
{
	int fd;

	PNO_ENTER();
	fd = number(f);
	return fd < 0 ? real.fileno(f) : fd;
}

PNO_EXPORT int fileno_unlocked(FILE *f)
{
	return fileno(f);
}

PNO_EXPORT int vdprintf(int fd, const char *format, va_list args)
{
	char *text;
	int n, done = 0;

	PNO_ENTER();
	if (!is_socket(fd))
		return real.vdprintf(fd, format, args);
	n = vasprintf(&text, format, args);
	while (n > 0 && done < n) {
		ssize_t k = write(fd, text + done, n - done);

		if (k < 0) {
			n = -1;
			break;
		}
		done += k;
	}
	if (n >= 0 || done)
		free(text);
	return n;
}

PNO_EXPORT int dprintf(int fd, const char *format, ...)
{
	va_list args;
	int n;

	va_start(args, format);
	n = vdprintf(fd, format, args);
	va_end(args);
	return n;
}

PNO_EXPORT int __vdprintf_chk(int fd, int flag, const char *format, va_list args)
{
	PNO_ENTER();
	return is_socket(fd) ? vdprintf(fd, format, args) : real.__vdprintf_chk(fd, flag, format, args);
}

PNO_EXPORT int __dprintf_chk(int fd, int flag, const char *format, ...)
{
	va_list args;
	int n;

	va_start(args, format);
	n = __vdprintf_chk(fd, flag, format, args);
	va_end(args);
	return n;
}

/* What from has not written goes out by to. */
static void move_pending(FILE *from, FILE *to)
{
	size_t n = __fpending(from);

	if (!n)
		return;
	fwrite(from->_IO_write_base, 1, n, to);
	__fpurge(from);
}

void pno_stdio_switch(int fd)
{
	FILE **now = standard(fd);
	int saved = errno;

	if (!is_socket(fd)) {
		if (ours[fd] && *now == ours[fd]) {
			if (fd)
				move_pending(ours[fd], libcs[fd]);
			*now = libcs[fd];
		}
		errno = saved;
		return;
	}
	if (!ours[fd])
		ours[fd] = open_stream(fd, fd ? "w" : "r");
	if (ours[fd] && *now != ours[fd]) {
		libcs[fd] = *now;
		if (fd == 2)
			setvbuf(ours[fd], NULL, _IONBF, 0);
		if (fd)
			move_pending(libcs[fd], ours[fd]);
		*now = ours[fd];
	}
	errno = saved;
}

void pno_stdio_child_locks(void)
{
	atomic_store(&lock.held, 0);
}
