/* SPDX-License-Identifier: Apache-2.0 */

/*
 * System call filters: see intercept_seccomp.c.
 */
#ifndef PNO_SECCOMP_H
#define PNO_SECCOMP_H

#include <linux/filter.h>

/* The system call seccomp. */
long pno_seccomp(unsigned operation, unsigned flags, const struct sock_fprog *program);

#endif
