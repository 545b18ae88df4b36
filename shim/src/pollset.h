/* SPDX-License-Identifier: Apache-2.0 */

#ifndef PNO_POLLSET_H
#define PNO_POLLSET_H

#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

/* True if the shim has to answer for this descriptor. */
bool pno_poll_concerns(int fd);
/*
 * poll with at least one such descriptor: a count, or -errno. ns < 0: forever.
 * own is memory (pno_alloc) that is freed if the call never returns.
 */
int pno_poll(struct pollfd *fds, nfds_t n, int64_t ns, const sigset_t *sigmask, void *own);

#endif
