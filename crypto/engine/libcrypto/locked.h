/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Memory that libcrypto reads keys into: locked, not dumped, wiped on fork and
 * when it is freed.
 */
#ifndef PNO_LOCKED_H
#define PNO_LOCKED_H

#include <stdbool.h>
#include <stddef.h>

/* Between these two, whatever libcrypto allocates on this thread comes from
 * there. It may be freed at any time, by any thread. */
void pno_confine(void);
void pno_release(void);

/* NULL, or why what is confined is not as safe as it should be. */
const char *pno_unlocked(void);

/* Makes libcrypto's own locked heap; once. size is a power of two, or 0 for what
 * the limits suggest. False: there is one already, and it is smaller. */
bool pno_secure_heap(size_t size);

/* Whether another key leaves enough of it for operations. */
bool pno_room(void);

void pno_heap(size_t *in_use, size_t *size);

#endif
