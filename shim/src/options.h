/* SPDX-License-Identifier: Apache-2.0 */

/* Numbers that not every version of the kernel's headers has. */
#ifndef PNO_OPTIONS_H
#define PNO_OPTIONS_H

#include <netinet/in.h>
#include <sys/socket.h>

/* Of SOL_IP and SOL_IPV6; their headers do not go together with the C library's. */
#define PNO_SO_ORIGINAL_DST 80

/* Below this a window serves nobody; the DPU has the same figure. */
#define PNO_LEAST_WINDOW 2048u

#ifndef IP_LOCAL_PORT_RANGE
#define IP_LOCAL_PORT_RANGE 51
#endif

#endif
