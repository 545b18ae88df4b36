/* SPDX-License-Identifier: Apache-2.0 */

/* Bytes that go from socket to socket on the DPU: see relay.c. */
#ifndef PNO_RELAY_H
#define PNO_RELAY_H

#include "pipe.h"
#include "sock.h"

/* Not to be answered here: the bytes have to come to the host. */
#define PNO_RELAY_NO (-4096)

/* splice from a socket into a pipe, and from a pipe to a socket: bytes, -errno,
 * or PNO_RELAY_NO. */
ssize_t pno_relay_in(int in, int pipe, size_t len, bool wait);
ssize_t pno_relay_out(int pipe, int out, size_t len, bool wait);
/* Bytes of the kind that PNO_RELAY_NO asks for have gone that way. */
void pno_relay_fed(int in, int pipe, size_t n);
void pno_relay_passed(int pipe, int out, size_t n);

/* A Held record came: what is wrong with it, or NULL. Socket locked. */
const char *pno_relay_held(struct pno_sock *s, const struct pno_record *r);
/* Ends the hold: what a pipe has of it goes there, and the first of the rest is
 * here. False: the socket was closed. Socket locked, but not all the time. */
bool pno_relay_fetch(struct pno_sock *s);
/* Nothing is on hold, and will not be until as many pno_relay_resume. */
void pno_relay_stop(void);
void pno_relay_resume(void);
void pno_relay_child(void);

#endif
