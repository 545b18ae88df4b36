/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Entry point: syscall(). Some libraries make calls past the C library's own
 * wrappers: libuv, under Node.js, closes every descriptor this way. What names
 * a call that the shim takes over goes to the shim, all else to the kernel.
 *
 * System calls by machine instruction cannot be seen here. io_uring would be
 * one, whatever its set-up goes through: the kernel would work on placeholders.
 * So its set-up fails with the errno of a kernel where it is switched off.
 *
 * Nothing is started here, unlike at the other entry points: jemalloc calls
 * syscall() while it starts itself, and starting us needs its memory.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "log.h"
#include "real.h"
#include "seccomp.h"
#include "sock.h"
#include "stats.h"

/* The sixth argument of pselect6: the mask and its size. */
struct sized_mask {
	const sigset_t *mask;
	size_t size;
};

static long refuse_uring(void)
{
	pno_log_once("io_uring is refused: it would bypass the offload");
	pno_count(calls_refused);
	errno = EPERM;
	return -1;
}

static long do_pselect(int n, long r, long w, long x, long timeout, const struct sized_mask *m)
{
	return pselect(n, (fd_set *)r, (fd_set *)w, (fd_set *)x, (const struct timespec *)timeout, m ? m->mask : NULL);
}

/*
 * A child with memory and descriptors of its own is a fork, wherever it comes from: vsftpd makes
 * its sessions so, in namespaces of their own. One that runs on another stack
 * does not come back here.
 */
static bool forks(long number, long flags, long stack)
{
	switch (number) {
	case SYS_clone:
		return !(flags & (CLONE_VM | CLONE_FILES)) && !stack;
#ifdef SYS_fork
	case SYS_fork:
		return true;
#endif
	}
	return false;
}

/* Reads six arguments, given or not, as the C library's own does. */
PNO_EXPORT __attribute__((no_sanitize("address"))) long syscall(long number, ...)
{
	long a, b, c, d, e, f;
	va_list args;

	va_start(args, number);
	a = va_arg(args, long);
	b = va_arg(args, long);
	c = va_arg(args, long);
	d = va_arg(args, long);
	e = va_arg(args, long);
	f = va_arg(args, long);
	va_end(args);

	if (unlikely(!pno_started)) {
		if (!real.syscall)
			*(void **)&real.syscall = dlsym(RTLD_NEXT, "syscall");
		return real.syscall(number, a, b, c, d, e, f);
	}
	switch (number) {
	case SYS_socket:
		return socket(a, b, c);
	case SYS_bind:
		return bind(a, (void *)b, c);
	case SYS_listen:
		return listen(a, b);
	case SYS_accept:
		return accept(a, (void *)b, (void *)c);
	case SYS_accept4:
		return accept4(a, (void *)b, (void *)c, d);
	case SYS_connect:
		return connect(a, (void *)b, c);
	case SYS_shutdown:
		return shutdown(a, b);
	case SYS_getsockname:
		return getsockname(a, (void *)b, (void *)c);
	case SYS_getpeername:
		return getpeername(a, (void *)b, (void *)c);
	case SYS_getsockopt:
		return getsockopt(a, b, c, (void *)d, (void *)e);
	case SYS_setsockopt:
		return setsockopt(a, b, c, (void *)d, e);
	case SYS_read:
		return read(a, (void *)b, c);
	case SYS_readv:
		return readv(a, (void *)b, c);
	case SYS_write:
		return write(a, (void *)b, c);
	case SYS_writev:
		return writev(a, (void *)b, c);
	case SYS_recvfrom:
		return recvfrom(a, (void *)b, c, d, (void *)e, (void *)f);
	case SYS_recvmsg:
		return recvmsg(a, (void *)b, c);
	case SYS_recvmmsg:
		return recvmmsg(a, (void *)b, c, d, (void *)e);
	case SYS_sendto:
		return sendto(a, (void *)b, c, d, (void *)e, f);
	case SYS_sendmsg:
		return sendmsg(a, (void *)b, c);
	case SYS_sendmmsg:
		return sendmmsg(a, (void *)b, c, d);
	case SYS_sendfile:
		return sendfile(a, b, (void *)c, d);
	case SYS_splice:
		return splice(a, (void *)b, c, (void *)d, e, f);
	case SYS_tee:
		return tee(a, b, c, d);
	case SYS_vmsplice:
		return vmsplice(a, (void *)b, c, d);
	case SYS_pipe2:
		return pipe2((void *)a, b);
	case SYS_close:
		return close(a);
	case SYS_close_range:
		return close_range(a, b, c);
	case SYS_dup:
		return dup(a);
	case SYS_dup3:
		return dup3(a, b, c);
	case SYS_fcntl:
		return fcntl(a, b, c);
	case SYS_ioctl:
		return ioctl(a, b, c);
	case SYS_epoll_create1:
		return epoll_create1(a);
	case SYS_epoll_ctl:
		return epoll_ctl(a, b, c, (void *)d);
	case SYS_epoll_pwait:
		return epoll_pwait(a, (void *)b, c, d, (void *)e);
	case SYS_epoll_pwait2:
		return epoll_pwait2(a, (void *)b, c, (void *)d, (void *)e);
	case SYS_ppoll:
		return ppoll((void *)a, b, (void *)c, (void *)d);
	case SYS_pselect6:
		return do_pselect(a, b, c, d, e, (void *)f);
	case SYS_execve:
		return execve((void *)a, (void *)b, (void *)c);
	case SYS_execveat:
		return execveat(a, (void *)b, (void *)c, (void *)d, e);
	case SYS_prctl:
		return prctl(a, b, c, d, e);
	case SYS_seccomp:
		return pno_seccomp(a, b, (const struct sock_fprog *)c);
	case SYS_pidfd_getfd:
		return pidfd_getfd(a, b, c);
	case SYS_io_uring_setup:
		return refuse_uring();
#ifdef SYS_poll /* not on machines that came after ppoll and the like */
	case SYS_poll:
		return poll((void *)a, b, c);
	case SYS_select:
		return select(a, (void *)b, (void *)c, (void *)d, (void *)e);
	case SYS_dup2:
		return dup2(a, b);
	case SYS_pipe:
		return pipe((void *)a);
	case SYS_epoll_create:
		return epoll_create(a);
	case SYS_epoll_wait:
		return epoll_wait(a, (void *)b, c, d);
#endif
	}
	if (unlikely(forks(number, a, b)))
		return pno_fork_raw(number, a, b, c, d, e);
	return real.syscall(number, a, b, c, d, e, f);
}
