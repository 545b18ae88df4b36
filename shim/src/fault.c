/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Bad pointers.
 *
 * The few instructions that touch the program's memory are listed in a table,
 * each with the place to go on at if it faults (the linker gathers it from
 * fault.h and from the copy below). Our action for SIGSEGV and SIGBUS looks
 * the interrupted instruction up; if it is one of ours, the thread goes on
 * there. Every other fault is the program's, and gets what the program has
 * asked for: its handler, with the context as the kernel made it, or the
 * default, by putting that back and letting the instruction fault again.
 *
 * The program's sigaction() for the two signals is answered from here, so that
 * it never sees ours. A thread that blocks SIGSEGV and passes a bad pointer is
 * killed, as for any fault: only the kernel can do better.
 */
#include "fault.h"

#include <errno.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "real.h"

static const int ours[] = { SIGSEGV, SIGBUS };
#define OURS (sizeof ours / sizeof ours[0])

static struct sigaction asked[OURS]; /* the program's */
static bool active;

static int nth(int sig)
{
	return sig == SIGBUS;
}

bool pno_fault_signal(int sig)
{
	return __atomic_load_n(&active, __ATOMIC_ACQUIRE) && (sig == SIGSEGV || sig == SIGBUS);
}

#if PNO_FAULTS
struct fault {
	int32_t at, next; /* relative to themselves */
};

extern const struct fault __start_pno_faults[] __attribute__((visibility("hidden")));
extern const struct fault __stop_pno_faults[] __attribute__((visibility("hidden")));

#if defined(__x86_64__)
#define PC(uc) ((uc)->uc_mcontext.gregs[REG_RIP])

/*
 * pno_copy_bytes(to: rdi, from: rsi, n: rdx). Up to 32 bytes by two moves that
 * may overlap; up to 2 KiB by 64, then 32 if that many are left, then the last
 * 32; more, by what the processor itself does best.
 */
__asm__(".macro PNO_MAY_FAULT insn:vararg\n"
	"1: \\insn\n"
	".pushsection pno_faults, \"a\"\n"
	".balign 4\n"
	".long 1b - .\n"
	".long pno_copy_fault - .\n"
	".popsection\n"
	".endm\n"
	".text\n"
	".globl pno_copy_bytes\n"
	".hidden pno_copy_bytes\n"
	".type pno_copy_bytes, @function\n"
	".balign 32\n"
	"pno_copy_bytes:\n"
	".cfi_startproc\n"
	"	endbr64\n"
	"	cmpq $16, %rdx\n"
	"	jb 3f\n"
	"	cmpq $32, %rdx\n"
	"	ja 5f\n"
	"PNO_MAY_FAULT movups (%rsi), %xmm0\n"
	"PNO_MAY_FAULT movups -16(%rsi,%rdx), %xmm1\n"
	"PNO_MAY_FAULT movups %xmm0, (%rdi)\n"
	"PNO_MAY_FAULT movups %xmm1, -16(%rdi,%rdx)\n"
	"	xorl %eax, %eax\n"
	"	ret\n"
	"3:	cmpl $8, %edx\n"
	"	jb 4f\n"
	"PNO_MAY_FAULT movq (%rsi), %rax\n"
	"PNO_MAY_FAULT movq -8(%rsi,%rdx), %rcx\n"
	"PNO_MAY_FAULT movq %rax, (%rdi)\n"
	"PNO_MAY_FAULT movq %rcx, -8(%rdi,%rdx)\n"
	"	xorl %eax, %eax\n"
	"	ret\n"
	"4:	testl %edx, %edx\n"
	"	jz 7f\n"
	"PNO_MAY_FAULT movzbl (%rsi), %eax\n"
	"PNO_MAY_FAULT movb %al, (%rdi)\n"
	"	incq %rsi\n"
	"	incq %rdi\n"
	"	decl %edx\n"
	"	jmp 4b\n"
	"5:	cmpq $2048, %rdx\n"
	"	ja 8f\n"
	"	movq %rdx, %rcx\n"
	"	andq $-64, %rcx\n"
	"	jz 9f\n"
	"	addq %rcx, %rsi\n"
	"	addq %rcx, %rdi\n"
	"	subq %rcx, %rdx\n"
	"	negq %rcx\n"
	"6:\n"
	"PNO_MAY_FAULT movups (%rsi,%rcx), %xmm0\n"
	"PNO_MAY_FAULT movups 16(%rsi,%rcx), %xmm1\n"
	"PNO_MAY_FAULT movups 32(%rsi,%rcx), %xmm2\n"
	"PNO_MAY_FAULT movups 48(%rsi,%rcx), %xmm3\n"
	"PNO_MAY_FAULT movups %xmm0, (%rdi,%rcx)\n"
	"PNO_MAY_FAULT movups %xmm1, 16(%rdi,%rcx)\n"
	"PNO_MAY_FAULT movups %xmm2, 32(%rdi,%rcx)\n"
	"PNO_MAY_FAULT movups %xmm3, 48(%rdi,%rcx)\n"
	"	addq $64, %rcx\n"
	"	jnz 6b\n"
	"9:	cmpl $32, %edx\n"
	"	jbe 2f\n"
	"PNO_MAY_FAULT movups (%rsi), %xmm0\n"
	"PNO_MAY_FAULT movups 16(%rsi), %xmm1\n"
	"PNO_MAY_FAULT movups %xmm0, (%rdi)\n"
	"PNO_MAY_FAULT movups %xmm1, 16(%rdi)\n"
	"2:\n"
	"PNO_MAY_FAULT movups -32(%rsi,%rdx), %xmm0\n"
	"PNO_MAY_FAULT movups -16(%rsi,%rdx), %xmm1\n"
	"PNO_MAY_FAULT movups %xmm0, -32(%rdi,%rdx)\n"
	"PNO_MAY_FAULT movups %xmm1, -16(%rdi,%rdx)\n"
	"7:	xorl %eax, %eax\n"
	"	ret\n"
	"8:	movq %rdx, %rcx\n"
	"PNO_MAY_FAULT rep movsb\n"
	"	xorl %eax, %eax\n"
	"	ret\n"
	"pno_copy_fault:\n"
	"	movl $1, %eax\n"
	"	ret\n"
	".cfi_endproc\n"
	".size pno_copy_bytes, . - pno_copy_bytes\n"
	".purgem PNO_MAY_FAULT\n");
#else
#define PC(uc) ((uc)->uc_mcontext.pc)

/* pno_copy_bytes(to: x0, from: x1, n: x2), in the same way. */
__asm__(".macro PNO_MAY_FAULT insn:vararg\n"
	"1: \\insn\n"
	".pushsection pno_faults, \"a\"\n"
	".balign 4\n"
	".long 1b - .\n"
	".long pno_copy_fault - .\n"
	".popsection\n"
	".endm\n"
	".text\n"
	".globl pno_copy_bytes\n"
	".hidden pno_copy_bytes\n"
	".type pno_copy_bytes, %function\n"
	".balign 32\n"
	"pno_copy_bytes:\n"
	".cfi_startproc\n"
	"	cmp x2, #32\n"
	"	b.ls 3f\n"
	"2:\n"
	"PNO_MAY_FAULT ldp q0, q1, [x1]\n"
	"PNO_MAY_FAULT stp q0, q1, [x0]\n"
	"	add x1, x1, #32\n"
	"	add x0, x0, #32\n"
	"	sub x2, x2, #32\n"
	"	cmp x2, #32\n"
	"	b.hi 2b\n"
	"	add x1, x1, x2\n"
	"	add x0, x0, x2\n"
	"PNO_MAY_FAULT ldp q0, q1, [x1, #-32]\n"
	"PNO_MAY_FAULT stp q0, q1, [x0, #-32]\n"
	"	mov w0, wzr\n"
	"	ret\n"
	"3:	cmp x2, #8\n"
	"	b.lo 5f\n"
	"4:\n"
	"PNO_MAY_FAULT ldr x3, [x1], #8\n"
	"PNO_MAY_FAULT str x3, [x0], #8\n"
	"	sub x2, x2, #8\n"
	"	cmp x2, #8\n"
	"	b.hs 4b\n"
	"5:	cbz x2, 6f\n"
	"PNO_MAY_FAULT ldrb w3, [x1], #1\n"
	"PNO_MAY_FAULT strb w3, [x0], #1\n"
	"	sub x2, x2, #1\n"
	"	b 5b\n"
	"6:	mov w0, wzr\n"
	"	ret\n"
	"pno_copy_fault:\n"
	"	mov w0, #1\n"
	"	ret\n"
	".cfi_endproc\n"
	".size pno_copy_bytes, . - pno_copy_bytes\n"
	".purgem PNO_MAY_FAULT\n");
#endif

static bool resume(ucontext_t *uc)
{
	uintptr_t pc = PC(uc);

	for (const struct fault *f = __start_pno_faults; f < __stop_pno_faults; f++) {
		if ((uintptr_t)&f->at + f->at == pc) {
			PC(uc) = (uintptr_t)&f->next + f->next;
			return true;
		}
	}
	return false;
}

/* The default action: at the next instant, with all that the kernel does. */
static void by_default(int sig, bool sent)
{
	struct sigaction dfl = { .sa_handler = SIG_DFL };

	real.sigaction(sig, &dfl, NULL);
	if (sent)
		syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), sig);
}

static void on_fault(int sig, siginfo_t *info, void *uc)
{
	bool sent = info->si_code <= 0; /* by somebody, not by an instruction */
	struct sigaction act;

	if (!sent && resume(uc))
		return;
	act = asked[nth(sig)];
	if (act.sa_handler == SIG_IGN && sent)
		return;
	if (act.sa_handler == SIG_DFL || act.sa_handler == SIG_IGN) {
		by_default(sig, sent);
		return;
	}
	if (act.sa_flags & SA_RESETHAND)
		asked[nth(sig)].sa_handler = SIG_DFL;
	act.sa_sigaction(sig, info, uc);
}

/* The kernel's entry, while the program asks for act. */
static int install(int sig, const struct sigaction *act)
{
	struct sigaction mine = *act;

	if (act->sa_handler == SIG_DFL || act->sa_handler == SIG_IGN) {
		mine.sa_flags = SA_RESTART | SA_ONSTACK;
		sigemptyset(&mine.sa_mask);
	}
	mine.sa_sigaction = on_fault;
	mine.sa_flags = (mine.sa_flags & ~SA_RESETHAND) | SA_SIGINFO;
	return real.sigaction(sig, &mine, NULL);
}

int pno_fault_sigaction(int sig, const struct sigaction *act, struct sigaction *old)
{
	struct sigaction before, wanted;
	int rc = 0;

	if (act)
		wanted = *act; /* old may be the same */
	before = asked[nth(sig)];
	if (act) {
		asked[nth(sig)] = wanted;
		rc = install(sig, &wanted);
		if (rc < 0)
			asked[nth(sig)] = before;
	}
	if (rc == 0 && old)
		*old = before;
	return rc;
}

void pno_fault_start(void)
{
	if (active)
		return;
	for (size_t i = 0; i < OURS; i++)
		if (sigaction(ours[i], NULL, &asked[nth(ours[i])]) == 0)
			install(ours[i], &asked[nth(ours[i])]);
	__atomic_store_n(&active, true, __ATOMIC_RELEASE);
}
#else
int pno_fault_sigaction(int sig, const struct sigaction *act, struct sigaction *old)
{
	return real.sigaction(sig, act, old);
}

void pno_fault_start(void)
{
}
#endif
