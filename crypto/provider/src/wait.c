/* SPDX-License-Identifier: Apache-2.0 */

/*
 * How a caller waits for the key agent.
 *
 * Outside of an async job the thread sleeps on a semaphore. Inside of one
 * (SSL_MODE_ASYNC) the job is paused and the program goes on with other
 * connections; it polls an eventfd which the agent's thread makes readable.
 *
 * The eventfd is made with the first operation of a connection and stays in the
 * connection's ASYNC_WAIT_CTX until that is freed: HAProxy keeps it in its
 * table of descriptors that long. HAProxy also expects that a job which set a
 * descriptor pauses at least once, so a job does, even if the answer is there
 * already.
 *
 * When a connection is freed while its job is paused, the job never goes on
 * (OpenSSL leaks its stack; haproxy issue 3453). The ASYNC_WAIT_CTX's cleanup
 * gives up the call in its place, so that nothing of ours leaks with it.
 */
#include <openssl/async.h>
#include <openssl/crypto.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "agent.h"

#define NAP 100 /* ms between looks of a thread that waits by itself */

static void forget_wait(ASYNC_WAIT_CTX *ctx, const void *key, OSSL_ASYNC_FD fd, void *custom)
{
	struct pno_wait *w = custom;
	struct pno_agent *a = w->agent;
	struct pno_call *c;

	(void)ctx, (void)key;
	pthread_mutex_lock(&a->lock);
	w->fd = -1;
	close(fd);
	c = w->call;
	if (c) {
		pno_call_complete(c, PNO_CALL_GONE, "the connection is gone");
		c->wait = NULL;
		pno_call_unref(c);
	}
	free(w);
	pno_agent_unref_locked(a);
}

static struct pno_wait *new_wait(struct pno_agent *a, ASYNC_WAIT_CTX *ctx)
{
	struct pno_wait *w = calloc(1, sizeof *w);

	if (!w)
		return NULL;
	w->agent = a;
	w->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (w->fd < 0 || !ASYNC_WAIT_CTX_set_wait_fd(ctx, a, w->fd, w, forget_wait)) {
		if (w->fd >= 0)
			close(w->fd);
		free(w);
		return NULL;
	}
	pthread_mutex_lock(&a->lock);
	a->refs++;
	pthread_mutex_unlock(&a->lock);
	return w;
}

/* What the current job waits with; NULL: there is no job, or no descriptor. */
static struct pno_wait *job_wait(struct pno_agent *a)
{
	ASYNC_JOB *job = ASYNC_get_current_job();
	ASYNC_WAIT_CTX *ctx = job ? ASYNC_get_wait_ctx(job) : NULL;
	OSSL_ASYNC_FD fd;
	void *w;

	if (!ctx)
		return NULL;
	return ASYNC_WAIT_CTX_get_fd(ctx, a, &fd, &w) ? w : new_wait(a, ctx);
}

static int status_of(struct pno_call *c)
{
	return atomic_load_explicit(&c->status, memory_order_acquire);
}

/* A program may have blocked pausing: ASYNC_pause_job returns at once then, and
 * says 1 all the same. But only a job that was left, and came back, finds the
 * list of new descriptors empty, which ours is in until the first time. How
 * often a job is resumed says nothing: a program may do so without a pause. */
static bool was_left(struct pno_wait *w)
{
	size_t added, removed;

	if (!w->pauses)
		w->pauses = ASYNC_WAIT_CTX_get_changed_fds(ASYNC_get_wait_ctx(ASYNC_get_current_job()), NULL, &added, NULL, &removed) && !added;
	return w->pauses;
}

static void pause_job(struct pno_call *c, struct pno_wait *w)
{
	do {
		struct pollfd p = { .fd = w->fd, .events = POLLIN };

		if (!ASYNC_pause_job() || !was_left(w))
			poll(&p, 1, NAP);
	} while (status_of(c) == PNO_CALL_PENDING);
}

/* So that the connection's next operation does not find the eventfd readable.
 * It is written after the status, under the lock. */
static void reset(struct pno_wait *w)
{
	uint64_t seen;

	if (read(w->fd, &seen, sizeof seen) > 0)
		return;
	pthread_mutex_lock(&w->agent->lock);
	(void)!read(w->fd, &seen, sizeof seen);
	pthread_mutex_unlock(&w->agent->lock);
}

/* The agent's thread ends a call whose time is over. */
static void sleep_on(struct pno_call *c)
{
	while (sem_wait(&c->done))
		;
}

void pno_agent_call(struct pno_agent *a, const struct pno_request *r, struct pno_answer *out)
{
	struct pno_call *c = pno_call_new(r);
	struct pno_wait *w;

	out->len = 0;
	out->text[0] = 0;
	out->status = PNO_CALL_BROKEN;
	if (!c)
		return;
	w = job_wait(a); /* from here on a job must pause */
	c->wait = w;
	if (w)
		w->call = c;
	pno_call_start(a, c);
	if (w)
		pause_job(c, w);
	else
		sleep_on(c);
	out->status = status_of(c);
	out->len = c->len;
	memcpy(out->data, c->out, c->len);
	memcpy(out->text, c->text, sizeof out->text);
	if (w) {
		w->call = NULL;
		reset(w);
	}
	pno_call_unref(c);
}
