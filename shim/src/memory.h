/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Memory for what calls need that a signal handler may make: see memory.c.
 */
#ifndef PNO_MEMORY_H
#define PNO_MEMORY_H

#include <stddef.h>

/* The largest block that is cut from a piece; larger ones are mapped. */
#define PNO_LARGEST (32768u + 16384u - 8u)

/* As malloc, calloc and free; a block belongs to this pair only. */
void *pno_alloc(size_t n);
void *pno_calloc(size_t n, size_t size);
void pno_free(void *p);

/* Fork: nobody else is in the middle of it. */
void pno_memory_lock(void);
void pno_memory_unlock(void);

#endif
