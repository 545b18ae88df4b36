/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Waits that end without returning.
 *
 * A thread that waits has taken things: a place to sleep at, its count among
 * the sleepers of a channel and the waiters of a socket. It may never come back
 * to give them up:
 *
 *   a handler leaves the wait by siglongjmp, as programs do for time limits;
 *   the thread is cancelled, or a handler ends it by pthread_exit;
 *   a handler throws a C++ exception.
 *
 * So what a wait holds is on a list of the thread's. longjmp and its like are
 * taken over: they look where the jump goes, and which of the waits are below
 * it on the stack, and let these give back what they have. All else unwinds the
 * stack, and meets a frame of pno_stay_call under each wait, whose personality
 * routine does it.
 *
 * A jump by other means (setcontext, the compiler's own longjmp) is not seen.
 * Who comes back by such a one after all finds that it has left, and nothing is
 * given back twice.
 */
#include "stay.h"

#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <unwind.h>

#include "interrupt.h"
#include "real.h"

static __thread struct pno_stay *stays __attribute__((tls_model("initial-exec")));

#if defined(__x86_64__) || defined(__aarch64__)
int pno_stay_call(int (*fn)(void *), void *arg);
_Unwind_Reason_Code pno_stay_unwound(int version, _Unwind_Action actions, _Unwind_Exception_Class cls,
				     struct _Unwind_Exception *e, struct _Unwind_Context *context);
#else
#define pno_stay_call(fn, arg) (fn)(arg)
#endif

/* 0x1b: relative to the table, which is near. */
#if defined(__x86_64__)
__asm__(".text\n"
	".globl pno_stay_call\n"
	".hidden pno_stay_call, pno_stay_unwound\n"
	".type pno_stay_call, @function\n"
	"pno_stay_call:\n"
	".cfi_startproc\n"
	".cfi_personality 0x1b, pno_stay_unwound\n"
	"	endbr64\n"
	"	subq $8, %rsp\n"
	".cfi_adjust_cfa_offset 8\n"
	"	movq %rdi, %rax\n"
	"	movq %rsi, %rdi\n"
	"	call *%rax\n"
	"	addq $8, %rsp\n"
	".cfi_adjust_cfa_offset -8\n"
	"	ret\n"
	".cfi_endproc\n"
	".size pno_stay_call, . - pno_stay_call\n");
#elif defined(__aarch64__)
__asm__(".text\n"
	".globl pno_stay_call\n"
	".hidden pno_stay_call, pno_stay_unwound\n"
	".type pno_stay_call, %function\n"
	"pno_stay_call:\n"
	".cfi_startproc\n"
	".cfi_personality 0x1b, pno_stay_unwound\n"
	"	stp x29, x30, [sp, #-16]!\n"
	".cfi_def_cfa_offset 16\n"
	".cfi_offset 29, -16\n"
	".cfi_offset 30, -8\n"
	"	mov x29, sp\n"
	"	mov x2, x0\n"
	"	mov x0, x1\n"
	"	blr x2\n"
	"	ldp x29, x30, [sp], #16\n"
	".cfi_restore 30\n"
	".cfi_restore 29\n"
	".cfi_def_cfa_offset 0\n"
	"	ret\n"
	".cfi_endproc\n"
	".size pno_stay_call, . - pno_stay_call\n");
#endif

int pno_stay(struct pno_stay *stay, void (*leave)(struct pno_stay *), int (*fn)(void *), void *arg)
{
	int rc;

	stay->outer = stays;
	stay->leave = leave;
	stay->left = false;
	atomic_signal_fence(memory_order_seq_cst);
	stays = stay;
	rc = pno_stay_call(fn, arg);
	atomic_signal_fence(memory_order_seq_cst);
	if (likely(!stay->left))
		stays = stay->outer;
	return rc;
}

void pno_stay_child(void)
{
	stays = NULL;
}

/* The innermost is over. */
static void leave_one(void)
{
	struct pno_stay *stay = stays;

	stay->left = true;
	stay->leave(stay);
	stays = stay->outer;
	if (!stays)
		pno_sleep_left();
}

#if defined(__x86_64__) || defined(__aarch64__)
_Unwind_Reason_Code pno_stay_unwound(int version, _Unwind_Action actions, _Unwind_Exception_Class cls,
				     struct _Unwind_Exception *e, struct _Unwind_Context *context)
{
	(void)version, (void)cls, (void)e, (void)context;
	if ((actions & _UA_CLEANUP_PHASE) && stays)
		leave_one();
	return _URC_CONTINUE_UNWIND;
}
#endif

/* The stack pointer that a jump sets, as libc keeps it. 0: not known. */
#if defined(__x86_64__)
static uintptr_t target(const struct __jmp_buf_tag *env)
{
	uintptr_t sp = env->__jmpbuf[6];

	__asm__("rorq $17, %0\n\txorq %%fs:48, %0" : "+r"(sp));
	return sp;
}
#elif defined(__aarch64__)
/* The guard is not to be had, but what a known stack pointer becomes is. */
static uintptr_t target(const struct __jmp_buf_tag *env)
{
	jmp_buf known;
	uintptr_t sp;

	if (_setjmp(known))
		return 0;
	__asm__("mov %0, sp" : "=r"(sp));
	return env->__jmpbuf[13] ^ known[0].__jmpbuf[13] ^ sp;
}
#else
static uintptr_t target(const struct __jmp_buf_tag *env)
{
	(void)env;
	return 0;
}
#endif

static bool within(const stack_t *s, uintptr_t at)
{
	return !(s->ss_flags & SS_DISABLE) && at - (uintptr_t)s->ss_sp < s->ss_size;
}

/* A handler's own stack is below all that it interrupts. */
static bool below(uintptr_t frame, uintptr_t sp, const stack_t *handlers)
{
	bool frame_there = within(handlers, frame), sp_there = within(handlers, sp);

	return frame_there == sp_there ? frame < sp : frame_there;
}

/* A handler that runs while the state is in pieces is on its own. */
static __attribute__((noinline)) void jump(const struct __jmp_buf_tag *env)
{
	uintptr_t sp = target(env);
	struct pno_stay *last = NULL;
	stack_t handlers;

	if (!sp || pno_section.depth || sigaltstack(NULL, &handlers) < 0)
		return;
	for (struct pno_stay *s = stays; s; s = s->outer)
		if (below((uintptr_t)s, sp, &handlers))
			last = s;
	while (last && stays != last->outer)
		leave_one();
}

#define JUMP(name)                                                                          \
	PNO_EXPORT __attribute__((noreturn)) void name(struct __jmp_buf_tag env[1], int value) \
	{                                                                                   \
		PNO_ENTER();                                                                \
		if (unlikely(stays))                                                        \
			jump(env);                                                          \
		real.name(env, value);                                                      \
		__builtin_unreachable();                                                    \
	}

__attribute__((noreturn)) void __longjmp_chk(struct __jmp_buf_tag env[1], int value);

JUMP(longjmp)
JUMP(_longjmp)
JUMP(siglongjmp)
JUMP(__longjmp_chk)
