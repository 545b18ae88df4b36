/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The connection to hostd: requests and answers of shim/attach.h. One request
 * at a time, under a mutex of its own; none of this is near a hot path.
 */
#ifndef PNO_HOSTD_H
#define PNO_HOSTD_H

#include "session.h"

#define PNO_MAX_FDS ((int)PNO_MAX_SHARDS + 2)

struct pno_fdset {
	int n;
	int fd[PNO_MAX_FDS];
};

/* Reads the environment. */
void pno_hostd_start(void);
/* The path of its socket. */
const char *pno_hostd_path(void);
/* Connects and says HELLO. 0 and the WELCOME with its descriptors, or an
 * errno, with *fallback from hostd if it refused. */
int pno_hostd_attach(const uint8_t *token, struct pno_msg_welcome *w, struct pno_fdset *fds, int *fallback);
/*
 * Sends a request (its head is filled in) with descriptors, and waits for the answer of the wanted type. Reconnects once if hostd
 * was restarted. 0 or an errno.
 */
int pno_hostd_ask_with(struct pno_session *ses, void *req, uint16_t type, size_t len, const int *sfd, int nsfd,
		       void *ans, uint16_t ans_type, size_t ans_len, struct pno_fdset *fds);
/* The same with one descriptor, or with none: -1. */
int pno_hostd_ask(struct pno_session *ses, void *req, uint16_t type, size_t len, int proof,
		  void *ans, uint16_t ans_type, size_t ans_len, struct pno_fdset *fds);
/* READY: after start-up; and before a fork, to be sure that hostd listens. */
int pno_hostd_ready(struct pno_session *ses);
/* FORKED, not answered: from the child on the inherited connection, and from
 * the parent, where pid is 0 if fork failed. */
void pno_hostd_forked(const uint8_t *token, pid_t pid);
void pno_hostd_lock(void);
void pno_hostd_unlock(void);
/* In the child: forget the connection (its descriptor is closed elsewhere). */
void pno_hostd_child(void);

#endif
