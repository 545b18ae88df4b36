/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Descriptor to object: an array indexed by descriptor, reserved once for the
 * hard limit of open files and touched page by page. NULL means: the kernel's
 * own business, and is what a call on any other descriptor costs: one load.
 *
 * An object starts with its kind. Sockets are never returned to malloc (they
 * go to a free list), so a pointer read from the table may be locked safely
 * even if another thread closes the descriptor meanwhile; the owner of the
 * lock then looks whether the table still says the same.
 */
#ifndef PNO_FDTABLE_H
#define PNO_FDTABLE_H

#include <stddef.h>
#include <stdint.h>

#include "sync.h"

enum pno_kind {
	PNO_KIND_SOCK = 1,
	PNO_KIND_EPOLL,
	PNO_KIND_PIPE, /* either end: see pipe.h */
	PNO_KIND_OWN, /* the shim's own: memory, eventfds, hostd */
};

struct pno_obj {
	uint8_t kind;
};

extern struct pno_obj **pno_fds;
extern unsigned pno_nfds;
extern atomic_uint pno_fd_top; /* one beyond the highest ever set */

void pno_fdtable_start(void);

static inline struct pno_obj *pno_fd_obj(int fd)
{
	if (unlikely((unsigned)fd >= pno_nfds))
		return NULL;
	return __atomic_load_n(&pno_fds[fd], __ATOMIC_ACQUIRE);
}

/* False if fd lies beyond the table. */
static inline bool pno_fd_set(int fd, struct pno_obj *o)
{
	if ((unsigned)fd >= pno_nfds)
		return false;
	__atomic_store_n(&pno_fds[fd], o, __ATOMIC_RELEASE);
	if (o && (unsigned)fd >= atomic_load_explicit(&pno_fd_top, memory_order_relaxed))
		atomic_store_explicit(&pno_fd_top, fd + 1, memory_order_relaxed);
	return true;
}

/*
 * Takes a descriptor over for the shim: moved to a high number, close-on-exec,
 * and out of reach of the program. Returns the new number or -1.
 */
int pno_fd_own(int fd);
/* Closes one of ours. */
void pno_fd_disown(int fd);
/* Closes all of ours: the child of a fork. */
void pno_fd_disown_all(void);

#endif
