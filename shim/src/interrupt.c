/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Signals and sleeping.
 *
 * A thread that waits for an offloaded socket sleeps in ppoll or epoll_wait,
 * which the kernel never restarts, where it would have restarted the accept or
 * recv that the program called. And it does not sleep all the time: it polls
 * the rings before, and a handler that runs then must end the wait as well.
 *
 * So every handler that the program installs is entered through a relay, which
 * notes in the thread what kind of handler has run. Which relay is in the
 * kernel's table tells how the program installed it, hence sigaction() can say
 * what the program expects to hear.
 *
 * The sleep itself is a system call of our own making: look at the note, then
 * enter the kernel. A signal between the two would be lost; but its relay
 * finds in the interrupted context that the thread was just there, and moves
 * it past the call. So a handler either is noted before the look, or moves the
 * thread, or interrupts the kernel's sleep.
 *
 * A handler may call send, recv or close on the very socket that its thread is
 * in the middle of. Such a signal is put off: its relay blocks all signals in
 * the interrupted context, sends the signal anew, to the thread itself and with
 * all that the kernel said of it, and returns. At the end of the outermost
 * section (sync.h) the mask is what it was, and the signal comes again. Signals
 * that an instruction causes, and abort(), are not put off: they do not come
 * again.
 *
 * Handlers that got into the kernel's table another way (a system call of the
 * program's own) end a sleep as they do without us, and nothing is restarted.
 * SIGSEGV and SIGBUS have a relay of their own: fault.c.
 */
#include "interrupt.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "fault.h"
#include "real.h"

__thread volatile unsigned pno_handled __attribute__((tls_model("initial-exec")));

typedef void (*action_t)(int, siginfo_t *, void *);

static _Atomic(action_t) handlers[NSIG];
static struct sigaction installed[NSIG]; /* the kernel's entries, with relays */
static atomic_bool filtered;

__thread volatile struct pno_section pno_section __attribute__((tls_model("initial-exec")));
static __thread uint64_t mask_before __attribute__((tls_model("initial-exec"))); /* while deferred */

#if defined(__SANITIZE_THREAD__)
#define OWN_CALL 0 /* it holds signals back until a call of libc's that it knows */
#elif defined(__x86_64__) || defined(__aarch64__)
#define OWN_CALL 1
#else
#define OWN_CALL 0
#endif

#if OWN_CALL
long pno_sleep_call(volatile unsigned *note, long nr, long a, long b, long c, long d, long e, long f);
extern char pno_sleep_look[], pno_sleep_past[], pno_sleep_no[];
#endif

#if OWN_CALL && defined(__x86_64__)
#define PC(uc) ((uc)->uc_mcontext.gregs[REG_RIP])
__asm__(".text\n"
	".globl pno_sleep_call, pno_sleep_look, pno_sleep_past, pno_sleep_no\n"
	".hidden pno_sleep_call, pno_sleep_look, pno_sleep_past, pno_sleep_no\n"
	".type pno_sleep_call, @function\n"
	"pno_sleep_call:\n"
	".cfi_startproc\n"
	"	endbr64\n"
	"	movq %rdi, %r11\n"
	"	movq %rsi, %rax\n"
	"	movq %rdx, %rdi\n"
	"	movq %rcx, %rsi\n"
	"	movq %r8, %rdx\n"
	"	movq %r9, %r10\n"
	"	movq 8(%rsp), %r8\n"
	"	movq 16(%rsp), %r9\n"
	"pno_sleep_look:\n"
	"	cmpl $0, (%r11)\n"
	"	jne pno_sleep_no\n"
	"	syscall\n"
	"pno_sleep_past:\n"
	"	ret\n"
	"pno_sleep_no:\n"
	"	movq $-4, %rax\n" /* EINTR */
	"	ret\n"
	".cfi_endproc\n"
	".size pno_sleep_call, . - pno_sleep_call\n");
#elif OWN_CALL && defined(__aarch64__)
#define PC(uc) ((uc)->uc_mcontext.pc)
__asm__(".text\n"
	".globl pno_sleep_call, pno_sleep_look, pno_sleep_past, pno_sleep_no\n"
	".hidden pno_sleep_call, pno_sleep_look, pno_sleep_past, pno_sleep_no\n"
	".type pno_sleep_call, %function\n"
	"pno_sleep_call:\n"
	".cfi_startproc\n"
	"	mov x9, x0\n"
	"	mov x8, x1\n"
	"	mov x0, x2\n"
	"	mov x1, x3\n"
	"	mov x2, x4\n"
	"	mov x3, x5\n"
	"	mov x4, x6\n"
	"	mov x5, x7\n"
	"pno_sleep_look:\n"
	"	ldr w10, [x9]\n"
	"	cbnz w10, pno_sleep_no\n"
	"	svc 0\n"
	"pno_sleep_past:\n"
	"	ret\n"
	"pno_sleep_no:\n"
	"	mov x0, #-4\n" /* EINTR */
	"	ret\n"
	".cfi_endproc\n"
	".size pno_sleep_call, . - pno_sleep_call\n");
#endif

/* The kernel's masks: of a context on the stack, libc's type says more than
 * there is. */
#define BIT(sig) (1ull << ((sig) - 1))
#define DEFERRABLE (~(BIT(SIGSEGV) | BIT(SIGBUS) | BIT(SIGFPE) | BIT(SIGILL) | BIT(SIGTRAP) | BIT(SIGSYS) | BIT(SIGABRT)))

static void set_mask(int how, uint64_t mask)
{
	syscall(SYS_rt_sigprocmask, how, &mask, NULL, sizeof mask);
}

/*
 * Puts a signal off until the section's end. Of several relays, one within the
 * other, the outermost is the last to write mask_before, and knows it. False:
 * it has to be now.
 */
static bool defer(int sig, siginfo_t *info, ucontext_t *uc)
{
	uint64_t *mask = (uint64_t *)&uc->uc_sigmask;
	int saved = errno;
	bool sent;

	if (!OWN_CALL || !(BIT(sig) & DEFERRABLE) || atomic_load_explicit(&filtered, memory_order_relaxed))
		return false;
	set_mask(SIG_BLOCK, DEFERRABLE);
	if (installed[sig].sa_flags & SA_RESETHAND)
		real.sigaction(sig, &installed[sig], NULL);
	sent = syscall(SYS_rt_tgsigqueueinfo, getpid(), gettid(), sig, info) == 0;
	if (sent) {
		mask_before = *mask;
		pno_section.deferred = true;
		*mask |= DEFERRABLE;
	}
	errno = saved;
	return sent; /* false: too many are queued */
}

void pno_section_over(void)
{
	int saved = errno;

	pno_section.deferred = false;
	set_mask(SIG_SETMASK, mask_before);
	errno = saved;
}

void pno_interrupts_child(void)
{
	pno_section.depth = 0;
	if (pno_section.deferred)
		pno_section_over(); /* the signal itself is the parent's */
}

void pno_interrupts_filtered(void)
{
	atomic_store(&filtered, true);
}

static void relay(int sig, siginfo_t *info, void *uc, unsigned note)
{
	action_t fn = atomic_load_explicit(&handlers[sig], memory_order_acquire);

	if (unlikely(pno_section.depth) && defer(sig, info, uc))
		return;
	fn(sig, info, uc);
	/* Afterwards: the handler may have waited itself. */
	pno_handled |= note;
#if OWN_CALL
	{
		ucontext_t *c = uc;
		uintptr_t pc = PC(c);

		if (pc >= (uintptr_t)pno_sleep_look && pc < (uintptr_t)pno_sleep_past)
			PC(c) = (uintptr_t)pno_sleep_no;
	}
#endif
}

/* [installed with SA_RESTART][with SA_SIGINFO, which we always use] */
static void relay_stop(int sig, siginfo_t *info, void *uc)
{
	relay(sig, info, uc, PNO_INTR_STOP);
}

static void relay_stop_info(int sig, siginfo_t *info, void *uc)
{
	relay(sig, info, uc, PNO_INTR_STOP);
	__asm__ volatile(""); /* not to be folded with relay_stop */
}

static void relay_restart(int sig, siginfo_t *info, void *uc)
{
	relay(sig, info, uc, PNO_INTR_RESTART);
}

static void relay_restart_info(int sig, siginfo_t *info, void *uc)
{
	relay(sig, info, uc, PNO_INTR_RESTART);
	__asm__ volatile("");
}

static const action_t relays[2][2] = {
	{ relay_stop, relay_stop_info },
	{ relay_restart, relay_restart_info },
};

static bool is_relay(const struct sigaction *a)
{
	for (int i = 0; i < 4; i++)
		if (a->sa_sigaction == relays[i / 2][i % 2])
			return true;
	return false;
}

static bool special(const struct sigaction *a)
{
	return a->sa_handler == SIG_DFL || a->sa_handler == SIG_IGN;
}

/* What the kernel holds to what the program asked for. */
static void unwrap(struct sigaction *a, action_t fn)
{
	if (!is_relay(a))
		return;
	if (a->sa_sigaction == relays[0][0] || a->sa_sigaction == relays[1][0])
		a->sa_flags &= ~SA_SIGINFO;
	a->sa_sigaction = fn;
}

PNO_EXPORT int sigaction(int sig, const struct sigaction *act, struct sigaction *old)
{
	struct sigaction mine;
	action_t former;
	int rc;

	PNO_ENTER();
	if (sig <= 0 || sig >= NSIG)
		return real.sigaction(sig, act, old);
	if (pno_fault_signal(sig))
		return pno_fault_sigaction(sig, act, old);
	former = atomic_load_explicit(&handlers[sig], memory_order_relaxed);
	if (act && !special(act)) {
		mine = *act;
		mine.sa_sigaction = relays[!!(act->sa_flags & SA_RESTART)][!!(act->sa_flags & SA_SIGINFO)];
		mine.sa_flags |= SA_SIGINFO;
		atomic_store_explicit(&handlers[sig], act->sa_sigaction, memory_order_release);
		act = &mine;
	}
	rc = real.sigaction(sig, act, old);
	if (rc == 0 && act == &mine)
		installed[sig] = mine;
	if (rc < 0 && act == &mine)
		atomic_store_explicit(&handlers[sig], former, memory_order_release);
	if (rc == 0 && old)
		unwrap(old, former);
	return rc;
}

PNO_EXPORT int __sigaction(int sig, const struct sigaction *act, struct sigaction *old)
{
	return sigaction(sig, act, old);
}

/* libc's own ways to an action, which know nothing of relays. */
void pno_interrupts_adopt(int sig)
{
	struct sigaction now;

	if (real.sigaction(sig, NULL, &now) < 0)
		return;
	unwrap(&now, atomic_load_explicit(&handlers[sig], memory_order_relaxed));
	if (!special(&now) || pno_fault_signal(sig))
		sigaction(sig, &now, NULL);
}

static sighandler_t by_name(sighandler_t (*fn)(int, sighandler_t), int sig, sighandler_t h)
{
	struct sigaction before;
	sighandler_t old;

	if (sig <= 0 || sig >= NSIG || sigaction(sig, NULL, &before) < 0)
		return fn(sig, h);
	old = fn(sig, h);
	if (old == SIG_ERR)
		return old;
	pno_interrupts_adopt(sig);
	return old == SIG_HOLD ? old : before.sa_handler;
}

#define BY_NAME(name)                                          \
	PNO_EXPORT sighandler_t name(int sig, sighandler_t h)  \
	{                                                      \
		PNO_ENTER();                                   \
		return by_name(real.name, sig, h);             \
	}

BY_NAME(signal)
BY_NAME(ssignal)
BY_NAME(sysv_signal)
BY_NAME(__sysv_signal)
BY_NAME(sigset)

PNO_EXPORT int siginterrupt(int sig, int stop)
{
	int rc;

	PNO_ENTER();
	rc = real.siginterrupt(sig, stop);
	if (rc == 0)
		pno_interrupts_adopt(sig);
	return rc;
}

/*
 * Cancellation. A thread can be cancelled in the kernel, as in libc's calls, but
 * not while a request to the DPU is under way, and where a call of the program's
 * begins; nowhere else (quiet.h).
 */
static atomic_bool cancels; /* somebody has been */

PNO_EXPORT int pthread_cancel(pthread_t thread)
{
	PNO_ENTER();
	atomic_store(&cancels, true);
	__atomic_store_n(&pno_ready, false, __ATOMIC_RELAXED);
	return real.pthread_cancel(thread);
}

void pno_cancel_here(void)
{
	if (atomic_load_explicit(&cancels, memory_order_relaxed) && !pno_section.depth)
		pthread_testcancel();
}

/* The cancellation type that the program has, while a sleep changes it. */
static __thread struct {
	bool changed;
	int type;
} program __attribute__((tls_model("initial-exec")));

void pno_sleep_left(void)
{
	if (!program.changed)
		return;
	program.changed = false;
	pthread_setcanceltype(program.type, NULL);
}

static long enter(long nr, long a, long b, long c, const sigset_t *mask, int ms)
{
	bool cancellable = !__libc_single_threaded && !pno_section.depth, outermost = cancellable && !program.changed;
	long size = _NSIG / 8, rc;
	int type = PTHREAD_CANCEL_DEFERRED;

	if (cancellable) {
		pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, &type);
		if (outermost) {
			program.type = type;
			program.changed = true;
		}
	}
#if OWN_CALL
	if (nr == SYS_ppoll)
		rc = pno_sleep_call(&pno_handled, nr, a, b, c, (long)mask, size, 0);
	else
		rc = pno_sleep_call(&pno_handled, nr, a, b, c, ms, (long)mask, size);
#else
	(void)size;
	if (pno_handled)
		rc = -EINTR;
	else if (nr == SYS_ppoll)
		rc = real.ppoll((void *)a, b, (void *)c, mask);
	else
		rc = real.epoll_pwait((int)a, (void *)b, (int)c, ms, mask);
	if (rc == -1)
		rc = -errno;
#endif
	if (cancellable)
		pthread_setcanceltype(type, NULL);
	if (outermost)
		program.changed = false;
	return rc;
}

int pno_sleep_ppoll(struct pollfd *fds, nfds_t n, struct timespec *timeout, const sigset_t *mask)
{
	return (int)enter(SYS_ppoll, (long)fds, n, (long)timeout, mask, 0);
}

int pno_sleep_epoll(int epfd, struct epoll_event *events, int max, int ms, const sigset_t *mask)
{
	return (int)enter(SYS_epoll_pwait, epfd, (long)events, max, mask, ms);
}
