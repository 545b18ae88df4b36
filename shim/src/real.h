/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The C library's own functions, behind the ones of the same name that the
 * shim exports: real.recv(...) always asks the kernel.
 */
#ifndef PNO_REAL_H
#define PNO_REAL_H

#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>

#include "sync.h"

struct pno_real {
#define PNO_CALL(ret, name, args) ret(*name) args;
#include "syscalls.def"
#undef PNO_CALL
};

extern struct pno_real real;

/* Set once the table is filled; entry points may run before our constructor. */
extern bool pno_started;
void pno_start(void);

/* Started, and nothing has to be looked at when a call begins. As an atomic it
 * would be loaded before it is tested, one instruction more in every call. */
extern bool pno_ready;
void pno_enter(bool point);

#if defined(__SANITIZE_THREAD__)
#define PNO_READY() __atomic_load_n(&pno_ready, __ATOMIC_RELAXED)
#else
#define PNO_READY() pno_ready
#endif

#define PNO_ENTER_AS(point)                  \
	do {                                 \
		if (unlikely(!PNO_READY()))  \
			pno_enter(point);    \
	} while (0)

/* The first thing that an entry point does; also a point of cancellation. */
#define PNO_ENTER()       PNO_ENTER_AS(false)
#define PNO_ENTER_POINT() PNO_ENTER_AS(true)

#define PNO_EXPORT __attribute__((visibility("default")))

#endif
