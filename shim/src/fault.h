/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The program's memory, which may not be there: where the kernel says EFAULT,
 * so do we. Everything here returns false, or jumps to its label, instead of
 * faulting. It costs what a plain access does: fault.c tells how.
 *
 * Without the processor's part below, accesses are plain ones.
 */
#ifndef PNO_FAULT_H
#define PNO_FAULT_H

#include <signal.h>
#include <stdint.h>
#include <string.h>

#include "sync.h"

#if defined(__x86_64__) || defined(__aarch64__)
#define PNO_FAULTS 1
#else
#define PNO_FAULTS 0
#endif

/* From when there is a session (called by who makes it, one at a time); before,
 * the program's faults are none of our business. */
void pno_fault_start(void);
/* True for signals whose actions are kept here. */
bool pno_fault_signal(int sig);
int pno_fault_sigaction(int sig, const struct sigaction *act, struct sigaction *old);

#if PNO_FAULTS
/* 0, or 1 if some of it cannot be read or written; then nobody knows how much
 * was copied. */
int pno_copy_bytes(void *to, const void *from, size_t n);

static inline bool pno_copy(void *to, const void *from, size_t n)
{
	return likely(!pno_copy_bytes(to, from, n));
}

/* Where to go on when the instruction at 1 faults. */
#define PNO_FAULT_AT(label)                            \
	".pushsection pno_faults, \"a\"\n"             \
	".balign 4\n"                                  \
	".long 1b - .\n"                               \
	".long " label " - .\n"                        \
	".popsection\n"

static inline bool pno_put32(void *to, uint32_t v)
{
#if defined(__x86_64__)
	__asm__ goto("1: movl %0, (%1)\n" PNO_FAULT_AT("%l2") : : "r"(v), "r"(to) : "memory" : bad);
#else
	__asm__ goto("1: str %w0, [%1]\n" PNO_FAULT_AT("%l2") : : "r"(v), "r"(to) : "memory" : bad);
#endif
	return true;
bad:
	return false;
}

static inline bool pno_put64(void *to, uint64_t v)
{
#if defined(__x86_64__)
	__asm__ goto("1: movq %0, (%1)\n" PNO_FAULT_AT("%l2") : : "r"(v), "r"(to) : "memory" : bad);
#else
	__asm__ goto("1: str %0, [%1]\n" PNO_FAULT_AT("%l2") : : "r"(v), "r"(to) : "memory" : bad);
#endif
	return true;
bad:
	return false;
}

/* True if the byte there can be read. */
static inline bool pno_there(const void *p)
{
#if defined(__x86_64__)
	__asm__ goto("1: testb $0, (%0)\n" PNO_FAULT_AT("%l1") : : "r"(p) : "cc" : bad);
#else
	__asm__ goto("1: ldrb wzr, [%0]\n" PNO_FAULT_AT("%l1") : : "r"(p) : : bad);
#endif
	return true;
bad:
	return false;
}
/* True if it can be written to, too; it is left as it is. */
static inline bool pno_touch(void *p)
{
#if defined(__x86_64__)
	__asm__ goto("1: lock orb $0, (%0)\n" PNO_FAULT_AT("%l1") : : "r"(p) : "cc", "memory" : bad);
#else
	__asm__ goto("2: ldxrb w16, [%0]\n"
		     "1: stxrb w17, w16, [%0]\n" PNO_FAULT_AT("%l1")
		     "cbnz w17, 2b\n"
		     : : "r"(p) : "x16", "x17", "memory" : bad);
#endif
	return true;
bad:
	return false;
}
#else
static inline bool pno_copy(void *to, const void *from, size_t n)
{
	memcpy(to, from, n);
	return true;
}

static inline bool pno_put32(void *to, uint32_t v)
{
	memcpy(to, &v, sizeof v);
	return true;
}

static inline bool pno_put64(void *to, uint64_t v)
{
	memcpy(to, &v, sizeof v);
	return true;
}

static inline bool pno_there(const void *p)
{
	(void)p;
	return true;
}

static inline bool pno_touch(void *p)
{
	(void)p;
	return true;
}
#endif

/* The same for writing. The program's other threads may be writing there. */
static inline bool pno_writable(void *p, size_t n)
{
	char *at = p, *end = at + n;

	if (!n)
		return true;
	for (; end - at > 4096; at += 4096)
		if (!pno_touch(at))
			return false;
	return pno_touch(at) && pno_touch(end - 1);
}

static inline bool pno_get32(const void *from, uint32_t *v)
{
	return pno_copy(v, from, sizeof *v);
}

/* True if all of it can be read. */
static inline bool pno_readable(const void *p, size_t n)
{
	const char *at = p, *end = at + n;

	if (!n)
		return true;
	for (; end - at > 4096; at += 4096)
		if (!pno_there(at))
			return false;
	return pno_there(at) && pno_there(end - 1);
}

#endif
