/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The list of pipes, and the calls that make them or duplicate what they hold.
 */
#include "pipe.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "real.h"
#include "relay.h"
#include "sock.h"

static struct pno_pipe *_Atomic all, *spare;

/*
 * A handler that writes to a pipe, as they do to wake a loop, may interrupt its
 * own thread here. So nobody waits for this lock: a pipe that cannot be taken
 * is not known, and one that cannot be given back is lost.
 */
static atomic_bool list_busy;

static bool list_lock(void)
{
	return !atomic_exchange_explicit(&list_busy, true, memory_order_acquire);
}

static void list_unlock(void)
{
	atomic_store_explicit(&list_busy, false, memory_order_release);
}

static struct pno_pipe *take(void)
{
	struct pno_pipe *p;

	if (!list_lock())
		return NULL;
	p = spare;
	if (p) {
		spare = p->spare;
	} else {
		p = calloc(1, sizeof *p);
		if (p) {
			p->kind = PNO_KIND_PIPE;
			p->all = all;
			all = p;
		}
	}
	list_unlock();
	return p;
}

static void give(struct pno_pipe *p)
{
	if (!list_lock())
		return;
	p->spare = spare;
	spare = p;
	list_unlock();
}

void pno_pipe_new(const int fd[2])
{
	struct pno_pipe *p;

	if ((unsigned)fd[0] >= pno_nfds || (unsigned)fd[1] >= pno_nfds || !(p = take()))
		return;
	pno_lock(&p->lock);
	p->fd[0] = fd[0];
	p->fd[1] = fd[1];
	p->real = p->len = p->size = 0;
	p->feeder = NULL;
	p->sized = false;
	p->known = true;
	pno_unlock(&p->lock);
	pno_fd_set(fd[0], (struct pno_obj *)p);
	pno_fd_set(fd[1], (struct pno_obj *)p);
}

struct pno_pipe *pno_pipe_lock(int fd, int end)
{
	struct pno_pipe *p;

	if (!pno_fd_is_pipe(fd))
		return NULL;
	p = (struct pno_pipe *)pno_fd_obj(fd);
	pno_lock(&p->lock);
	if (p->known && p->fd[end] == fd && pno_fd_obj(fd) == (struct pno_obj *)p &&
	    pno_fd_obj(p->fd[!end]) == (struct pno_obj *)p)
		return p;
	pno_unlock(&p->lock);
	return NULL;
}

void pno_pipe_leave(struct pno_pipe *p)
{
	bool known;

	pno_pipe_fetch(p);
	pno_lock(&p->lock);
	known = p->known;
	p->known = false;
	for (int i = 0; known && i < 2; i++)
		if (pno_fd_obj(p->fd[i]) == (struct pno_obj *)p)
			pno_fd_set(p->fd[i], NULL);
	pno_unlock(&p->lock);
	if (known)
		give(p);
}

struct pno_pipe *pno_pipe_first(void)
{
	return all;
}

void pno_pipe_leave_all(void)
{
	for (struct pno_pipe *p = all; p; p = p->all)
		pno_pipe_leave(p);
}

void pno_pipe_child_locks(void)
{
	list_unlock();
	for (struct pno_pipe *p = all; p; p = p->all)
		atomic_store(&p->lock.held, 0);
}

int pno_pipe_fcntl(struct pno_pipe *p, int fd, int cmd, void *arg)
{
	int rc;

	if (cmd == F_SETPIPE_SZ)
		pno_pipe_fetch(p); /* it may not become smaller than what is in it */
	rc = real.fcntl(fd, cmd, arg);
	if (cmd == F_SETPIPE_SZ && rc >= 0) {
		pno_lock(&p->lock);
		p->size = rc;
		p->sized = true;
		pno_unlock(&p->lock);
	}
	return rc;
}

PNO_EXPORT int pipe(int fd[2])
{
	return pipe2(fd, 0);
}

PNO_EXPORT int pipe2(int fd[2], int flags)
{
	int rc;

	PNO_ENTER();
	rc = real.pipe2(fd, flags);
	if (rc == 0 && !(flags & ~(O_CLOEXEC | O_NONBLOCK)))
		pno_pipe_new(fd);
	return rc;
}

PNO_EXPORT ssize_t tee(int in, int out, size_t len, unsigned flags)
{
	PNO_ENTER();
	pno_pipe_leave_fd(in);
	pno_pipe_leave_fd(out);
	return real.tee(in, out, len, flags);
}

PNO_EXPORT ssize_t vmsplice(int fd, const struct iovec *iov, size_t n, unsigned flags)
{
	PNO_ENTER();
	pno_pipe_leave_fd(fd);
	return real.vmsplice(fd, iov, n, flags);
}
