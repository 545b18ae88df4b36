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
 *
 * freopen() of such a stream keeps its functions, which serve a file as well:
 * the descriptor is what changes.
 */
#include "filestream.h"

#include <errno.h>
#include <fcntl.h>
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

static int stream_seek(void *cookie, off64_t *offset, int whence)
{
	off64_t at = lseek64(((struct stream *)cookie)->fd, *offset, whence);

	if (at < 0)
		return -1;
	*offset = at;
	return 0;
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
	static const cookie_io_functions_t how = { stream_read, stream_write, stream_seek, stream_close };
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
	pno_pipe_leave_fd(fd);
	return is_socket(fd) ? open_stream(fd, mode) : real.fdopen(fd, mode);
}

static struct stream *find(FILE *f)
{
	struct stream *t;

	if (likely(!__atomic_load_n(&streams, __ATOMIC_RELAXED)))
		return NULL;
	pno_lock(&lock);
	for (t = streams; t && t->file != f; t = t->next)
		;
	pno_unlock(&lock);
	return t;
}

PNO_EXPORT int fileno(FILE *f)
{
	struct stream *t;

	PNO_ENTER();
	t = find(f);
	if (!t)
		return real.fileno(f);
	if (t->fd < 0)
		errno = EBADF;
	return t->fd;
}

PNO_EXPORT int fileno_unlocked(FILE *f)
{
	return fileno(f);
}

/* What libc's struct has in _flags for the mode of a stream: part of its ABI,
 * but of no header. */
#define NO_READS  0x0004
#define NO_WRITES 0x0008
#define APPENDING 0x1000

/* The flags of open() and of the stream; false: no mode. */
static bool parse_mode(const char *mode, int *flags, int *access)
{
	switch (*mode) {
	case 'r':
		*flags = O_RDONLY;
		*access = NO_WRITES;
		break;
	case 'w':
		*flags = O_WRONLY | O_CREAT | O_TRUNC;
		*access = NO_READS;
		break;
	case 'a':
		*flags = O_WRONLY | O_CREAT | O_APPEND;
		*access = NO_READS | APPENDING;
		break;
	default:
		return false;
	}
	while (*++mode && *mode != ',') {
		if (*mode == '+') {
			*flags = (*flags & ~O_ACCMODE) | O_RDWR;
			*access &= APPENDING;
		} else if (*mode == 'x') {
			*flags |= O_EXCL;
		} else if (*mode == 'e') {
			*flags |= O_CLOEXEC;
		}
	}
	return true;
}

/* Puts what a path names (NULL: what the descriptor itself does) in the place
 * of a descriptor; on failure that is closed, as libc does. */
static bool replace(int fd, const char *path, int flags)
{
	char self[32];
	int file, err;

	snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
	file = open(path ? path : self, flags, 0666);
	err = errno;
	if (file >= 0 && dup3(file, fd, flags & O_CLOEXEC) == fd) {
		close(file);
		return true;
	}
	if (file >= 0) {
		err = errno;
		close(file);
	}
	close(fd);
	errno = err;
	return false;
}

static FILE *reopen(struct stream *t, const char *path, const char *mode)
{
	FILE *f = t->file;
	int fd = t->fd, flags, access;
	bool ok;

	flockfile(f);
	fflush_unlocked(f);
	__fpurge(f);
	clearerr_unlocked(f);
	ok = parse_mode(mode, &flags, &access);
	if (!ok) {
		close(fd);
		errno = EINVAL;
	} else {
		ok = replace(fd, path, flags);
	}
	if (!ok)
		t->fd = -1;
	else
		f->_flags = (f->_flags & ~(NO_READS | NO_WRITES | APPENDING)) | access;
	funlockfile(f);
	if (!ok)
		return NULL;
	/* A standard one has made way for libc's own, on the same descriptor. */
	return (unsigned)fd <= 2 && ours[fd] == f ? *standard(fd) : f;
}

PNO_EXPORT FILE *freopen(const char *path, const char *mode, FILE *f)
{
	struct stream *t;
	int fd;

	PNO_ENTER();
	t = find(f);
	if (t)
		return reopen(t, path, mode);
	fd = real.fileno(f);
	if (fd >= 0 && is_socket(fd)) {
		/* libc would close the descriptor behind our back. */
		fflush(f);
		if (!replace(fd, path ? "/dev/null" : NULL, O_RDWR))
			return NULL;
	}
	return real.freopen(path, mode, f);
}

_Static_assert(sizeof(off_t) == 8, "the 64-bit twin is the same");

PNO_EXPORT FILE *freopen64(const char *path, const char *mode, FILE *f)
{
	return freopen(path, mode, f);
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
