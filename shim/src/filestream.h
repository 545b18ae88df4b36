/* SPDX-License-Identifier: Apache-2.0 */

/*
 * FILE streams over offloaded sockets: see filestream.c.
 */
#ifndef PNO_FILESTREAM_H
#define PNO_FILESTREAM_H

#include "sync.h"

void pno_stdio_switch(int fd);

/* What a descriptor stands for has changed: stdin, stdout and stderr follow. */
static inline void pno_stdio_follow(int fd)
{
	if (unlikely((unsigned)fd <= 2))
		pno_stdio_switch(fd);
}

void pno_stdio_child_locks(void);

#endif
