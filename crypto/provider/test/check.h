/* SPDX-License-Identifier: Apache-2.0 */

/* CHECK ends the test program and says where; with the OpenSSL error stack. */
#ifndef PNO_CHECK_H
#define PNO_CHECK_H

#include <openssl/err.h>
#include <stdio.h>
#include <stdlib.h>

#define CHECK(what)                                                                  \
	do {                                                                         \
		if (!(what)) {                                                       \
			fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #what); \
			ERR_print_errors_fp(stderr);                                 \
			exit(1);                                                     \
		}                                                                    \
	} while (0)

#endif
