/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The C library's own functions, behind the ones of the same name that the
 * shim exports: real.recv(...) always asks the kernel.
 */
#ifndef PNO_REAL_H
#define PNO_REAL_H

#include <poll.h>
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

#define PNO_ENTER()                          \
	do {                                 \
		if (unlikely(!pno_started))  \
			pno_start();         \
	} while (0)

#define PNO_EXPORT __attribute__((visibility("default")))

#endif
