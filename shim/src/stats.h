/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Counters. They live in the statistics page of the session, where hostd reads
 * them; before there is a session, in private memory, copied at attach.
 */
#ifndef PNO_STATS_H
#define PNO_STATS_H

#include <stdint.h>

#include "sync.h"

enum pno_stat {
#define PNO_STAT(name, help) PNO_STAT_##name,
#include "../stats.def"
#undef PNO_STAT
	PNO_STAT_COUNT
};

extern uint64_t *pno_stats;

static inline void pno_count_n(enum pno_stat which, uint64_t n)
{
	uint64_t *c = &pno_stats[which];

	if (likely(__libc_single_threaded))
		__atomic_store_n(c, *c + n, __ATOMIC_RELAXED);
	else
		__atomic_fetch_add(c, n, __ATOMIC_RELAXED);
}

/* What is counted together. */
static inline void pno_count_both(enum pno_stat a, uint64_t n, enum pno_stat b, uint64_t m)
{
	uint64_t *c = pno_stats;

	if (likely(__libc_single_threaded)) {
		__atomic_store_n(&c[a], c[a] + n, __ATOMIC_RELAXED);
		__atomic_store_n(&c[b], c[b] + m, __ATOMIC_RELAXED);
	} else {
		__atomic_fetch_add(&c[a], n, __ATOMIC_RELAXED);
		__atomic_fetch_add(&c[b], m, __ATOMIC_RELAXED);
	}
}

#define pno_count(name)      pno_count_n(PNO_STAT_##name, 1)
#define pno_count_add(name, n) pno_count_n(PNO_STAT_##name, (n))

/* Moves the counters to their page; NULL: to zeroed private memory (a child). */
void pno_stats_move(uint64_t *page);

#endif
