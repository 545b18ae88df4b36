/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Calls to the kernel of the shim's own, which no cancellation ends: libc's
 * functions of these names are cancellation points, and a thread that were
 * cancelled in one would never give back the lock that it holds. A thread can be
 * cancelled where it waits for the program (interrupt.c), and in the program's
 * own calls for the kernel's descriptors.
 */
#ifndef PNO_QUIET_H
#define PNO_QUIET_H

#include <fcntl.h>
#include <sys/syscall.h>

#include "real.h"

static inline ssize_t quiet_write(int fd, const void *buf, size_t len)
{
	return real.syscall(SYS_write, fd, buf, len);
}

static inline ssize_t quiet_read(int fd, void *buf, size_t len)
{
	return real.syscall(SYS_read, fd, buf, len);
}

static inline ssize_t quiet_pread(int fd, void *buf, size_t len, off_t at)
{
	return real.syscall(SYS_pread64, fd, buf, len, at);
}

static inline int quiet_open(const char *path, int flags, mode_t mode)
{
	return (int)real.syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

/* ThreadSanitizer follows descriptors by libc's calls. */
static inline int quiet_close(int fd)
{
#if defined(__SANITIZE_THREAD__)
	return real.close(fd);
#else
	return (int)real.syscall(SYS_close, fd);
#endif
}

static inline int quiet_connect(int fd, const struct sockaddr *sa, socklen_t len)
{
	return (int)real.syscall(SYS_connect, fd, sa, len);
}

static inline ssize_t quiet_sendmsg(int fd, const struct msghdr *m, int flags)
{
	return real.syscall(SYS_sendmsg, fd, m, flags);
}

static inline ssize_t quiet_recvmsg(int fd, struct msghdr *m, int flags)
{
	return real.syscall(SYS_recvmsg, fd, m, flags);
}

/* What an epoll set has, without waiting. */
static inline void quiet_take(int epfd, struct epoll_event *events, int max)
{
	real.syscall(SYS_epoll_pwait, epfd, events, max, 0, NULL, _NSIG / 8);
}

/* Less than a second. */
static inline void quiet_nap(long ns)
{
	struct timespec nap = { .tv_nsec = ns };

	real.syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &nap, NULL);
}

#endif
