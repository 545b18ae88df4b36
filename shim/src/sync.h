/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Locks and barriers.
 *
 * A lock is one word, held for tens of nanoseconds and never over a blocking
 * call. While the process has one thread nothing is locked at all: glibc tells
 * by __libc_single_threaded, which only turns false inside pthread_create, and
 * no lock is held over that.
 *
 * In a section (whoever holds a lock is in one, also while nothing is locked)
 * the state may be in pieces, so no signal handler of the program runs in it:
 * the call that it makes could be for the very same socket. interrupt.c puts
 * the signal off until the thread has left its outermost section.
 *
 * Order, outermost first: channel, socket, epoll, ring producer, and the
 * leaves (allocators, call list). Nobody holds two of the same kind, except
 * fork, which takes them all in this order.
 */
#ifndef PNO_SYNC_H
#define PNO_SYNC_H

#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/single_threaded.h>

#define likely(x)   __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

typedef struct {
	atomic_uint held;
} pno_lock_t;

#if defined(__x86_64__)
#define pno_pause() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define pno_pause() __asm__ volatile("yield")
#else
#define pno_pause() ((void)0)
#endif

struct pno_section {
	unsigned depth;
	bool deferred; /* a signal waits for the end of it */
};

extern __thread volatile struct pno_section pno_section __attribute__((tls_model("initial-exec")));

void pno_section_over(void);

static inline void pno_section_enter(void)
{
	pno_section.depth++;
	atomic_signal_fence(memory_order_seq_cst);
}

static inline void pno_section_leave(void)
{
	atomic_signal_fence(memory_order_seq_cst);
	if (!--pno_section.depth && unlikely(pno_section.deferred))
		pno_section_over();
}

void pno_lock_slow(pno_lock_t *l);

/* For a lock that is taken and released while another one is held: the section
 * is that one's. */
static inline void pno_lock_inner(pno_lock_t *l)
{
	if (likely(__libc_single_threaded))
		return;
	if (unlikely(atomic_exchange_explicit(&l->held, 1, memory_order_acquire)))
		pno_lock_slow(l);
}

/* The same without waiting, and so in any order. */
static inline bool pno_trylock_inner(pno_lock_t *l)
{
	return __libc_single_threaded || !atomic_exchange_explicit(&l->held, 1, memory_order_acquire);
}

static inline void pno_unlock_inner(pno_lock_t *l)
{
	atomic_store_explicit(&l->held, 0, memory_order_release);
}

static inline void pno_lock(pno_lock_t *l)
{
	pno_section_enter();
	pno_lock_inner(l);
}

static inline void pno_unlock(pno_lock_t *l)
{
	pno_unlock_inner(l);
	pno_section_leave();
}

/*
 * The full fence of the sleep and doorbell protocols: no later load may pass
 * an earlier store. ThreadSanitizer does not know fences; a read-modify-write
 * is the same to the processor.
 */
static inline void pno_full_fence(void)
{
#if defined(__SANITIZE_THREAD__)
	static atomic_int order;
	atomic_fetch_add_explicit(&order, 0, memory_order_seq_cst);
#else
	atomic_thread_fence(memory_order_seq_cst);
#endif
}

/* Words of the session memory that the other side may change at any time. */
static inline uint64_t pno_load64(const uint64_t *p)
{
	return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}

static inline uint32_t pno_load32(const uint32_t *p)
{
	return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}

static inline void pno_store64(uint64_t *p, uint64_t v)
{
	__atomic_store_n(p, v, __ATOMIC_RELEASE);
}

static inline void pno_store32(uint32_t *p, uint32_t v)
{
	__atomic_store_n(p, v, __ATOMIC_RELEASE);
}

#endif
