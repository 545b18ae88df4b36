/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Sleeping outside epoll: blocking calls and poll.
 *
 * A sleeper has the interrupts of the channels it waits for in a small kernel
 * epoll set of its own, edge-triggered: every interrupt wakes every sleeper
 * once, and nobody has to read (and so take away from others) the eventfd.
 */
#ifndef PNO_WAIT_H
#define PNO_WAIT_H

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/time.h>
#include <time.h>

#include "interrupt.h"
#include "session.h"

/* Absolute monotonic nanoseconds. */
#define PNO_NEVER INT64_MAX
int64_t pno_now(void);
static inline int64_t pno_deadline_ms(int ms)
{
	return ms < 0 ? PNO_NEVER : pno_now() + ms * 1000000ll;
}

/* A clock that costs next to nothing, and only tells whether some tens of
 * microseconds have gone by: its rate is not known. */
#if defined(__x86_64__)
#define PNO_SOME_TICKS (1u << 16)
static inline uint64_t pno_ticks(void)
{
	return __builtin_ia32_rdtsc();
}
#elif defined(__aarch64__)
#define PNO_SOME_TICKS (1u << 10)
static inline uint64_t pno_ticks(void)
{
	uint64_t t;

	__asm__ volatile("mrs %0, cntvct_el0" : "=r"(t));
	return t;
}
#else
#define PNO_SOME_TICKS 20000u
static inline uint64_t pno_ticks(void)
{
	return pno_now();
}
#endif

/* Of the time limits that a socket has: 0 is none. */
static inline int64_t pno_deadline_within(uint32_t millis)
{
	return likely(!millis) ? PNO_NEVER : pno_now() + millis * 1000000ll;
}

/* What SO_RCVTIMEO and the like say, as the kernel takes them. More than 49 days
 * are as good as 49; less than nothing is at once. */
static inline uint32_t pno_millis(const struct timeval *t)
{
	if (t->tv_sec < 0)
		return 1;
	if (t->tv_sec >= UINT32_MAX / 1000)
		return UINT32_MAX;
	return t->tv_sec * 1000 + (t->tv_usec + 999) / 1000;
}

/*
 * Sleeps until an interrupt of one of the channels, a kernel descriptor's
 * event, a signal, or the deadline. cond is asked after everything is armed:
 * true means there is work, do not sleep. Returns the number of kernel
 * descriptors with events, 0 (look again), or -errno (EINTR, ETIMEDOUT).
 * Without kernel descriptors, n is 0.
 */
int pno_sleep(struct pno_session *ses, uint64_t channels, bool (*cond)(void *), void *arg,
	      struct pollfd *fds, nfds_t n, const sigset_t *sigmask, int64_t deadline);

/*
 * Arms the channels; true: nothing came meanwhile, so the caller may sleep in
 * the kernel, and calls pno_channels_awake after it. False: it must not (and
 * has nothing to undo). *armed, 0 at first, are those on which the caller counts
 * as a sleeper at any time: a stay that is left calls pno_channels_awake, too.
 */
bool pno_channels_arm(struct pno_session *ses, uint64_t channels, uint64_t *armed, bool (*cond)(void *), void *arg);
void pno_channels_awake(struct pno_session *ses, uint64_t *armed);

/*
 * Waits until a socket shows one of the bits (or is no longer what it was).
 * Called and returns with the socket locked. 0, or -errno: EINTR, EAGAIN (the
 * deadline), EBADF (closed meanwhile). pno_interrupts_begin comes before the
 * first wait of a call.
 */
int pno_sock_wait(struct pno_sock *s, uint32_t bits, int64_t deadline);
/* The same until there is more data than now, or none to come. */
int pno_sock_wait_data(struct pno_sock *s, int64_t deadline);

/* True if a wait that has failed is to be repeated: interrupted, but by
 * handlers only that the kernel restarts the call after. */
static inline bool pno_wait_again(int rc, int64_t deadline)
{
	return rc == -EINTR && deadline == PNO_NEVER && pno_interrupts_restart();
}

/* In the child of a fork: its parent's interrupts are not its own. */
void pno_wait_child(void);

/* Polls the channels' rings for a while, if that has paid lately. True: work. */
bool pno_spin(struct pno_session *ses, uint64_t channels, bool (*cond)(void *), void *arg);

#endif
