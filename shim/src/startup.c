/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Start-up: the real functions, the descriptor table, fork handlers. This runs
 * at the first intercepted call or from our constructor, whichever is first:
 * constructors of other libraries may make calls before ours.
 *
 * hostd is not contacted here: a program that opens no TCP socket never needs
 * it. Only a TCP socket inherited by exec makes us ask at once.
 */
#include <dlfcn.h>
#include <stdlib.h>

#include "fdtable.h"
#include "hostd.h"
#include "interrupt.h"
#include "log.h"
#include "real.h"
#include "sock.h"

struct pno_real real;
bool pno_started, pno_ready;

void pno_start(void)
{
	if (pno_started)
		return;
#define PNO_CALL(ret, name, args) *(void **)&real.name = dlsym(RTLD_NEXT, #name);
#include "syscalls.def"
#undef PNO_CALL
	pno_log_start();
	pno_hostd_start();
	pno_exec_start();
	pno_fdtable_start();
	pno_fork_start();
	pno_started = pno_ready = true;
}

void pno_enter(bool point)
{
	pno_start();
	if (point)
		pno_cancel_here();
}

__attribute__((constructor)) static void at_load(void)
{
	pno_start();
	pno_inherit_all();
}
