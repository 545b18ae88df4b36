/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Entry points: names with two underscores that the C library has for some of
 * its calls, and that programs may call as well. What is behind them there is
 * the kernel's file, not the socket.
 */
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <unistd.h>

#include "real.h"

PNO_EXPORT ssize_t __read(int fd, void *buf, size_t len)
{
	return read(fd, buf, len);
}

PNO_EXPORT ssize_t __write(int fd, const void *buf, size_t len)
{
	return write(fd, buf, len);
}

PNO_EXPORT ssize_t __send(int fd, const void *buf, size_t len, int flags)
{
	return send(fd, buf, len, flags);
}

PNO_EXPORT int __connect(int fd, const struct sockaddr *addr, socklen_t len)
{
	return connect(fd, addr, len);
}

PNO_EXPORT int __close(int fd)
{
	return close(fd);
}

PNO_EXPORT int __dup2(int from, int to)
{
	return dup2(from, to);
}

PNO_EXPORT int __fcntl(int fd, int cmd, ...)
{
	va_list ap;
	void *arg;

	va_start(ap, cmd);
	arg = va_arg(ap, void *);
	va_end(ap);
	return fcntl(fd, cmd, arg);
}

PNO_EXPORT int __pipe(int fd[2])
{
	return pipe(fd);
}

PNO_EXPORT int __poll(struct pollfd *fds, nfds_t n, int timeout)
{
	return poll(fds, n, timeout);
}

PNO_EXPORT int __select(int n, fd_set *r, fd_set *w, fd_set *e, struct timeval *timeout)
{
	return select(n, r, w, e, timeout);
}

PNO_EXPORT pid_t __fork(void)
{
	return fork();
}

PNO_EXPORT pid_t __vfork(void)
{
	return vfork();
}
