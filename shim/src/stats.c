/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Where the counters are. Moving them is rare (attach, fork), and made by one
 * thread; a count that another thread adds in that moment may be lost.
 */
#include "stats.h"

#include <string.h>

#include "../abi.h"

static uint64_t early[PNO_STAT_COUNT];
uint64_t *pno_stats = early;

_Static_assert(sizeof early <= PNO_STATS_SIZE, "statistics page");

void pno_stats_move(uint64_t *page)
{
	if (!page) {
		memset(early, 0, sizeof early);
		pno_stats = early;
		return;
	}
	/* The page of a former session has been added up by hostd. */
	if (pno_stats == early)
		memcpy(page, early, sizeof early);
	pno_stats = page;
}
