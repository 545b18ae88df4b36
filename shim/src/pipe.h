/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Pipes that offloaded sockets are spliced through. What is in one is either
 * in the kernel's pipe (real), or has stayed on the DPU (virtual: len bytes of
 * the feeder's stream from off on), never both at once by the same thread.
 *
 * That only works while the pipe is used by splice and nothing else, and is
 * nobody else's: the process made it, by pipe(), and has one descriptor of each
 * end. Any other use (read, write, poll, dup, fork, sending it, tee, close …)
 * comes through pno_sock_peek or by its own way to pno_pipe_leave, which
 * fetches what is virtual and makes the pipe an ordinary one for good.
 *
 * Pipes come from a free list and go back to it, as sockets do. Their lock is
 * a leaf; a socket's may be held.
 */
#ifndef PNO_PIPE_H
#define PNO_PIPE_H

#include "fdtable.h"

struct pno_sock;
struct pno_session;

struct pno_pipe {
	uint8_t kind; /* PNO_KIND_PIPE */
	bool known;   /* in the descriptor table */
	bool sized;   /* the program has chosen its size */
	uint8_t shard; /* of the feeder, as are handle and ses */
	pno_lock_t lock;
	int fd[2];
	uint32_t handle;
	uint32_t generation; /* of the feeder */
	uint32_t size;       /* room, once it was asked for */
	int64_t real;        /* bytes in the kernel's pipe */
	uint64_t off, len;
	struct pno_session *ses;
	struct pno_sock *feeder; /* where all that is in it came from; NULL: several */
	struct pno_pipe *all, *spare;
};

/* A pipe that the program has just made. */
void pno_pipe_new(const int fd[2]);
/* It is an ordinary pipe from now on, with everything that was in it. */
void pno_pipe_leave(struct pno_pipe *p);
void pno_pipe_leave_all(void);
/* All pipes, linked by their all. */
struct pno_pipe *pno_pipe_first(void);
/* What is virtual becomes real. */
void pno_pipe_fetch(struct pno_pipe *p);
/* The pipe whose end (0 read, 1 write) fd is, locked; NULL: not one of these. */
struct pno_pipe *pno_pipe_lock(int fd, int end);
/* fcntl with neither F_DUPFD nor the like. */
int pno_pipe_fcntl(struct pno_pipe *p, int fd, int cmd, void *arg);
void pno_pipe_child_locks(void);

static inline bool pno_fd_is_pipe(int fd)
{
	const struct pno_obj *o = pno_fd_obj(fd);

	return unlikely(o && o->kind == PNO_KIND_PIPE);
}

static inline void pno_pipe_fetch_fd(int fd)
{
	if (pno_fd_is_pipe(fd))
		pno_pipe_fetch((struct pno_pipe *)pno_fd_obj(fd));
}

static inline void pno_pipe_leave_fd(int fd)
{
	if (pno_fd_is_pipe(fd))
		pno_pipe_leave((struct pno_pipe *)pno_fd_obj(fd));
}

#endif
