/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Waits that end without returning: see stay.c.
 */
#ifndef PNO_STAY_H
#define PNO_STAY_H

#include <stdbool.h>

/* What a wait has taken and gives back, on its frame. */
struct pno_stay {
	struct pno_stay *outer;
	void (*leave)(struct pno_stay *);
	bool left;
};

/*
 * Calls fn, which waits, and gives back before it returns what it took. If it
 * never returns, leave gives back what fn still has by then: fn takes note of
 * that with a lock held (in a section), where no handler runs. leave is called
 * with no lock held.
 */
int pno_stay(struct pno_stay *stay, void (*leave)(struct pno_stay *), int (*fn)(void *), void *arg);

/* In the child of a fork: what its parent's thread holds is not its own. */
void pno_stay_child(void);

#endif
