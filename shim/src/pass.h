/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Sockets that leave the process: pass.c. inherit.c has the other side.
 */
#ifndef PNO_PASS_H
#define PNO_PASS_H

#include <stdbool.h>
#include <sys/socket.h>

struct pno_sock;

/* The socket behind a descriptor, if it is offloaded, may be found by another
 * process from now on. */
void pno_pass(int fd);
/* Everything that a message takes along. */
void pno_pass_message(const struct msghdr *m);
/* Everything that stays open over exec. */
void pno_pass_exec(void);
/* The socket will be another: gives it a file of its own, which nobody knows.
 * False, with errno. Socket locked. */
bool pno_pass_end(struct pno_sock *s);
/* Every descriptor of the socket, of which first is the first, gets another
 * file. Socket locked. */
void pno_pass_replace(struct pno_sock *s, int first, int file);
/* True for the placeholder of such a connection. */
bool pno_pass_marked(int fd);

#endif
