/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Entry point: prctl, for processes that lock themselves up with a filter for
 * system calls, as the unprivileged children of sshd and vsftpd do. Such a
 * filter lets a process read and write its connection. Under the shim, reading
 * may have to wait for a ring instead, and the filter would have the process
 * killed for it.
 *
 * So a process that holds offloaded sockets attaches before, and its filter is
 * installed with a few instructions in front, which let pass what the shim
 * sleeps and wakes with. These calls reach nothing but descriptors and memory
 * that the process has already; what the filter says of all others stands.
 */
#include <errno.h>
#include <linux/audit.h>
#include <linux/seccomp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "fault.h"
#include "interrupt.h"
#include "log.h"
#include "real.h"
#include "seccomp.h"
#include "session.h"
#include "sock.h"

#if defined(__x86_64__)
#define MACHINE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define MACHINE AUDIT_ARCH_AARCH64
#else
#error "which AUDIT_ARCH is this machine?"
#endif

/* Sleeping (wait.c, epoll.c), naps (fork.c), doorbells (session.c), and
 * descriptors of our own (fdtable.c). */
static const uint32_t needed[] = {
	SYS_ppoll, SYS_epoll_create1, SYS_epoll_ctl, SYS_epoll_pwait,
#ifdef SYS_epoll_wait
	SYS_epoll_wait,
#endif
	SYS_nanosleep, SYS_clock_nanosleep, SYS_write, SYS_fcntl, SYS_prlimit64, SYS_rt_sigreturn,
};
#define NEEDED (sizeof needed / sizeof needed[0])
#define PREFIX (NEEDED + 5)

static void find_offloaded(struct pno_sock *s, void *arg)
{
	*(bool *)arg |= pno_sock_offloaded(s);
}

static struct sock_filter *with_prefix(const struct sock_fprog *program, unsigned *len)
{
	struct sock_filter *f = malloc((PREFIX + program->len) * sizeof *f);
	unsigned n = 0;

	if (!f)
		return NULL;
	f[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
	f[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, MACHINE, 0, NEEDED + 3);
	f[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
	for (unsigned i = 0; i < NEEDED; i++)
		f[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, needed[i], NEEDED - i, 0);
	f[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JA, 1, 0, 0);
	f[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	memcpy(f + n, program->filter, program->len * sizeof *f);
	*len = n + program->len;
	return f;
}

long pno_seccomp(unsigned operation, unsigned flags, const struct sock_fprog *program)
{
	struct sock_fprog wider;
	struct sock_filter *f;
	bool offloaded = false;
	unsigned len;
	long rc;

	PNO_ENTER();
	if (operation == SECCOMP_SET_MODE_FILTER && program)
		pno_sock_each(find_offloaded, &offloaded);
	if (!offloaded || !pno_session_get() || !program->len || program->len > BPF_MAXINSNS - PREFIX)
		return real.syscall(SYS_seccomp, operation, flags, program);
	f = with_prefix(program, &len);
	if (!f)
		return real.syscall(SYS_seccomp, operation, flags, program);
	wider = (struct sock_fprog){ .len = len, .filter = f };
	pno_interrupts_filtered();
	rc = real.syscall(SYS_seccomp, operation, flags, &wider);
	pno_debug("a filter for system calls was installed: %s", rc < 0 ? strerror(errno) : "with what the shim needs");
	free(f);
	return rc;
}

PNO_EXPORT int prctl(int op, ...)
{
	unsigned long a, b, c, d;
	va_list args;

	PNO_ENTER();
	va_start(args, op);
	a = va_arg(args, unsigned long);
	b = va_arg(args, unsigned long);
	c = va_arg(args, unsigned long);
	d = va_arg(args, unsigned long);
	va_end(args);
	if (op == PR_SET_SECCOMP && a == SECCOMP_MODE_FILTER)
		return pno_seccomp(SECCOMP_SET_MODE_FILTER, 0, (const struct sock_fprog *)b);
	return real.prctl(op, a, b, c, d);
}
