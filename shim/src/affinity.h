/* SPDX-License-Identifier: Apache-2.0 */

#ifndef PNO_AFFINITY_H
#define PNO_AFFINITY_H

#include "sock.h"

/* This thread has accepted c (locked). */
void pno_affinity_accepted(struct pno_sock *c);
/* The shard for a connection that this thread is about to make. */
unsigned pno_affinity_shard(const struct pno_session *ses);

#endif
