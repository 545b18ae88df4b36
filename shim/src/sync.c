/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The contended half of the locks. The holder may have been preempted (two
 * cores are enough for that), so spinning is short and then the processor is
 * given away.
 */
#include "sync.h"

void pno_lock_slow(pno_lock_t *l)
{
	for (unsigned n = 0;; n++) {
		if (!atomic_load_explicit(&l->held, memory_order_relaxed) &&
		    !atomic_exchange_explicit(&l->held, 1, memory_order_acquire))
			return;
		if (n < 64)
			pno_pause();
		else
			sched_yield();
	}
}
