/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Signals and sleeping: see interrupt.c.
 */
#ifndef PNO_INTERRUPT_H
#define PNO_INTERRUPT_H

#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <time.h>

#include "sync.h"

/* What handlers of this thread did since the wait began. */
#define PNO_INTR_STOP    1u /* one ran that was installed without SA_RESTART */
#define PNO_INTR_RESTART 2u /* one ran that was installed with it */

extern __thread volatile unsigned pno_handled __attribute__((tls_model("initial-exec")));

/* A call is about to wait: what happened before does not count. */
static inline void pno_interrupts_begin(void)
{
	pno_handled = 0;
}

/* After -EINTR: true if the kernel would have restarted the call. */
static inline bool pno_interrupts_restart(void)
{
	bool restart = pno_handled == PNO_INTR_RESTART;

	if (restart)
		pno_handled = 0;
	return restart;
}

/* ppoll and epoll_pwait which fail with EINTR also for handlers that ran
 * since pno_interrupts_begin. Return -errno. */
int pno_sleep_ppoll(struct pollfd *fds, nfds_t n, struct timespec *timeout, const sigset_t *mask);
int pno_sleep_epoll(int epfd, struct epoll_event *events, int max, int ms, const sigset_t *mask);

/* The call in which the thread slept is over, without returning. */
void pno_sleep_left(void);

/* A call begins at which the thread may be cancelled. */
void pno_cancel_here(void);

/* From now on a filter may forbid what putting signals off needs. */
void pno_interrupts_filtered(void);
/* In the child of a fork: it is in no section. */
void pno_interrupts_child(void);

/* The signal's action is the program's business, but its calls go through
 * sigaction(): wraps what somebody installed another way. */
void pno_interrupts_adopt(int sig);

#endif
