/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Operations on their way to the key agent and back.
 *
 * A call is queued, then sent, then complete. Whoever starts a call sends it
 * itself if the connection is there; the thread (link.c) receives, and sends
 * what could not be sent at once: without a connection, with a full socket, or
 * beyond the number of operations that the agent allows. When a connection
 * ends, what was sent is queued again: the next agent is asked again, for as
 * long as the caller's patience lasts. A caller that gives up leaves its call
 * in the table until the answer comes, as its id is in use until then.
 *
 * While the agent is gone for longer than the patience with one call, further
 * calls do not wait that long each, but only for one more attempt to connect:
 * a proxy that blocks in here would otherwise do nothing but wait.
 *
 * Fork: a child inherits neither the thread nor the right to the connection.
 * The lock is taken across fork, so that the child finds everything in order;
 * it closes its copies, forgets the calls (they are the parent's) and starts a
 * thread of its own if the parent had one. It connects when it has something to
 * ask.
 */
#include <errno.h>
#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"

#define NO_SLOT UINT32_MAX
#define LAST_TRY (100 * PNO_MS) /* patience while the agent is known to be gone */
#define BATCH 16                /* messages a packet */

_Static_assert(BATCH * PNO_OP_MAX <= PNO_AGENT_PACKET, "a batch fits a packet");

static pthread_mutex_t all_lock = PTHREAD_MUTEX_INITIALIZER;
static struct pno_agent *all;

uint64_t pno_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void before_fork(void)
{
	pthread_mutex_lock(&all_lock);
	for (struct pno_agent *a = all; a; a = a->next)
		pthread_mutex_lock(&a->lock);
}

static void after_fork(void)
{
	for (struct pno_agent *a = all; a; a = a->next)
		pthread_mutex_unlock(&a->lock);
	pthread_mutex_unlock(&all_lock);
}

static void forget_calls(struct pno_calls *list, const char *why)
{
	struct pno_call *c;

	while ((c = TAILQ_FIRST(list))) {
		TAILQ_REMOVE(list, c, at);
		c->wait = NULL;
		pno_call_complete(c, PNO_CALL_GONE, why);
		pno_call_unref(c);
	}
}

static void in_child(void)
{
	for (struct pno_agent *a = all; a; a = a->next) {
		bool had = a->running;

		if (had) {
			close(a->wake);
			if (a->fd >= 0)
				close(a->fd);
		}
		a->wake = a->fd = -1;
		a->running = a->dozing = a->broken = a->full = false;
		a->gone_since = a->retry_at = a->backoff_ms = 0;
		forget_calls(&a->queued, "the process has forked");
		forget_calls(&a->sent, "the process has forked");
		for (uint32_t i = 0; i < a->nslots; i++)
			a->slots[i].call = NULL;
		a->nslots = a->inflight = 0;
		a->free_slot = NO_SLOT;
		if (had && !a->stop)
			pno_link_start(a); /* if not, the first call tries again and tells */
	}
	after_fork();
}

static void watch_forks(void)
{
	pthread_atfork(before_fork, after_fork, in_child);
}

struct pno_agent *pno_agent_new(const char *path, unsigned patience_ms)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	struct pno_agent *a = calloc(1, sizeof *a);

	if (!a || strlen(path) >= sizeof a->addr.sun_path) {
		free(a);
		return NULL;
	}
	pthread_once(&once, watch_forks);
	a->addr.sun_family = AF_UNIX;
	memcpy(a->addr.sun_path, path, strlen(path));
	a->patience = patience_ms * PNO_MS;
	a->refs = 1;
	a->fd = a->wake = -1;
	a->free_slot = NO_SLOT;
	TAILQ_INIT(&a->queued);
	TAILQ_INIT(&a->sent);
	pthread_mutex_init(&a->lock, NULL);
	sem_init(&a->apart, 0, 0);
	pthread_mutex_lock(&all_lock);
	a->next = all;
	all = a;
	pthread_mutex_unlock(&all_lock);
	return a;
}

void pno_agent_unref_locked(struct pno_agent *a)
{
	unsigned left = --a->refs;

	pthread_mutex_unlock(&a->lock);
	if (left)
		return;
	pthread_mutex_destroy(&a->lock);
	sem_destroy(&a->apart);
	free(a->slots);
	free(a->packet);
	free(a);
}

void pno_agent_free(struct pno_agent *a)
{
	struct pno_agent **at;
	bool join;

	if (!a)
		return;
	pthread_mutex_lock(&all_lock);
	for (at = &all; *at != a; at = &(*at)->next)
		;
	*at = a->next;
	pthread_mutex_unlock(&all_lock);

	pthread_mutex_lock(&a->lock);
	a->stop = true;
	join = a->running;
	if (join)
		pno_agent_wake(a);
	pthread_mutex_unlock(&a->lock);
	if (join)
		pthread_join(a->thread, NULL);
	pthread_mutex_lock(&a->lock);
	if (a->wake >= 0)
		close(a->wake);
	if (a->fd >= 0)
		close(a->fd);
	a->wake = a->fd = -1;
	forget_calls(&a->queued, "the provider ends");
	forget_calls(&a->sent, "the provider ends");
	pno_agent_unref_locked(a);
}

/* Starts the thread if there is none yet. */
void pno_agent_begin(struct pno_agent *a)
{
	pthread_mutex_lock(&a->lock);
	if (!a->running && !a->stop)
		pno_link_start(a); /* if not, the first call tries again and tells */
	pthread_mutex_unlock(&a->lock);
}

void pno_agent_wake(struct pno_agent *a)
{
	uint64_t one = 1;

	a->dozing = false;
	if (write(a->wake, &one, sizeof one) < 0)
		return; /* EAGAIN: it has been told often enough */
}

struct pno_call *pno_call_new(const struct pno_request *r)
{
	struct pno_call *c = malloc(sizeof *c);

	if (!c)
		return NULL;
	memset(c, 0, offsetof(struct pno_call, out));
	c->refs = 1;
	sem_init(&c->done, 0, 0);
	c->msg_len = pno_wire_op(c->msg, r);
	return c;
}

void pno_call_unref(struct pno_call *c)
{
	if (atomic_fetch_sub_explicit(&c->refs, 1, memory_order_acq_rel) != 1)
		return;
	sem_destroy(&c->done);
	OPENSSL_cleanse(c->out, c->len); /* may be a premaster secret */
	free(c);
}

void pno_call_complete(struct pno_call *c, int status, const char *text)
{
	uint64_t one = 1;

	if (c->status != PNO_CALL_PENDING)
		return;
	if (text)
		memcpy(c->text, text, strnlen(text, sizeof c->text - 1));
	atomic_store_explicit(&c->status, status, memory_order_release);
	if (!c->wait)
		sem_post(&c->done);
	else if (c->wait->fd >= 0 && write(c->wait->fd, &one, sizeof one) < 0)
		return; /* cannot fail: there is one write a call, and each is read */
}

static uint64_t deadline(const struct pno_agent *a, uint64_t now)
{
	uint64_t limit;

	if (a->fd >= 0 || !a->gone_since)
		return now + a->patience;
	limit = a->gone_since + a->patience;
	return limit > now + LAST_TRY ? limit : now + (LAST_TRY < a->patience ? LAST_TRY : a->patience);
}

void pno_call_start(struct pno_agent *a, struct pno_call *c)
{
	pthread_mutex_lock(&a->lock);
	if (a->stop || (!a->running && !pno_link_start(a))) {
		pno_call_complete(c, PNO_CALL_BROKEN, a->stop ? "the provider ends" : a->why);
		pthread_mutex_unlock(&a->lock);
		return;
	}
	c->started = pno_now();
	c->deadline = deadline(a, c->started);
	atomic_fetch_add_explicit(&c->refs, 1, memory_order_relaxed);
	TAILQ_INSERT_TAIL(&a->queued, c, at);
	if (a->fd >= 0)
		pno_agent_flush(a);
	if (a->dozing || a->fd < 0 || a->broken || a->full)
		pno_agent_wake(a);
	pthread_mutex_unlock(&a->lock);
}

static bool more_slots(struct pno_agent *a)
{
	uint32_t n = a->nslots ? 2 * a->nslots : 64;
	struct pno_slot *s = realloc(a->slots, n * sizeof *s);

	if (!s)
		return false;
	a->slots = s;
	for (uint32_t i = a->nslots; i < n; i++) {
		s[i] = (struct pno_slot){ .next_free = a->free_slot };
		a->free_slot = i;
	}
	a->nslots = n;
	return true;
}

static void put_slot(struct pno_agent *a, uint32_t i)
{
	a->slots[i].call = NULL;
	a->slots[i].use++;
	a->slots[i].next_free = a->free_slot;
	a->free_slot = i;
	a->inflight--;
}

/* The agent is to answer a little before the caller stops waiting. */
static uint32_t timeout_us(const struct pno_agent *a, const struct pno_call *c, uint64_t now)
{
	uint64_t left = c->deadline > now ? c->deadline - now : 0;
	uint64_t us = (left - (left / 4 < 100 * PNO_MS ? left / 4 : 100 * PNO_MS)) / 1000;

	if (a->max_timeout_us && us > a->max_timeout_us)
		us = a->max_timeout_us;
	return us ? (uint32_t)us : 1;
}

/* Takes the oldest queued calls, up to a batch, each with a slot of its own. */
static size_t take_batch(struct pno_agent *a, struct pno_call *batch[BATCH], struct iovec iov[BATCH])
{
	struct pno_call *c = TAILQ_FIRST(&a->queued);
	uint64_t now = pno_now();
	size_t n = 0;

	for (; c && n < BATCH && a->inflight < a->max_inflight; c = TAILQ_NEXT(c, at)) {
		struct pno_slot *s;

		if (a->free_slot == NO_SLOT && !more_slots(a))
			break;
		s = &a->slots[a->free_slot];
		c->slot = a->free_slot;
		a->free_slot = s->next_free;
		a->inflight++;
		s->call = c;
		pno_wire_stamp(c->msg, (uint64_t)s->use << 32 | c->slot, timeout_us(a, c, now));
		iov[n] = (struct iovec){ c->msg, c->msg_len };
		batch[n++] = c;
	}
	return n;
}

void pno_agent_flush(struct pno_agent *a)
{
	struct pno_call *batch[BATCH];
	struct iovec iov[BATCH];
	size_t n;

	while (!a->broken && (n = take_batch(a, batch, iov))) {
		struct msghdr mh = { .msg_iov = iov, .msg_iovlen = n };
		ssize_t sent;

		do
			sent = sendmsg(a->fd, &mh, MSG_DONTWAIT | MSG_NOSIGNAL);
		while (sent < 0 && errno == EINTR);
		if (sent < 0) {
			a->full = errno == EAGAIN;
			a->broken = !a->full;
			for (size_t i = 0; i < n; i++)
				put_slot(a, batch[i]->slot);
			return;
		}
		a->full = false;
		for (size_t i = 0; i < n; i++) {
			TAILQ_REMOVE(&a->queued, batch[i], at);
			TAILQ_INSERT_TAIL(&a->sent, batch[i], at);
			batch[i]->sent = true;
		}
	}
}

static void drop_sent(struct pno_agent *a, struct pno_call *c)
{
	TAILQ_REMOVE(&a->sent, c, at);
	put_slot(a, c->slot);
	c->sent = false;
}

/* The agent is there: whoever was to wait shortly for it may wait for its answer. */
void pno_agent_here(struct pno_agent *a)
{
	struct pno_call *c;

	a->gone_since = 0;
	TAILQ_FOREACH(c, &a->queued, at)
		c->deadline = c->started + a->patience;
}

/* The connection is gone: what somebody still waits for has to be asked again. */
void pno_agent_requeue(struct pno_agent *a)
{
	struct pno_call *c;

	while ((c = TAILQ_LAST(&a->sent, pno_calls))) {
		drop_sent(a, c);
		if (c->status == PNO_CALL_PENDING)
			TAILQ_INSERT_HEAD(&a->queued, c, at);
		else
			pno_call_unref(c);
	}
	a->full = a->broken = false;
}

bool pno_agent_result(struct pno_agent *a, const struct pno_message *m)
{
	uint32_t i = (uint32_t)m->id;
	struct pno_call *c = i < a->nslots ? a->slots[i].call : NULL;

	if (!c || !c->sent || a->slots[i].use != m->id >> 32)
		return false;
	drop_sent(a, c);
	if (c->status == PNO_CALL_PENDING) {
		memcpy(c->out, m->data, m->len);
		c->len = m->len;
		pno_call_complete(c, m->status, NULL);
	}
	pno_call_unref(c);
	return true;
}

/* A call waits for one attempt to connect at least, however late the thread comes
 * to it. */
static bool awaits_attempt(const struct pno_agent *a, const struct pno_call *c, uint64_t now)
{
	return a->fd < 0 && c->started >= a->tried && now < c->started + a->patience;
}

/* Ends calls whose time is over. False: the agent owes an answer for too long. */
bool pno_agent_expire(struct pno_agent *a, uint64_t now)
{
	struct pno_call *c, *next;
	bool prompt = true;

	for (c = TAILQ_FIRST(&a->queued); c; c = next) {
		next = TAILQ_NEXT(c, at);
		if (c->status == PNO_CALL_PENDING && (now < c->deadline || awaits_attempt(a, c, now)))
			continue;
		pno_call_complete(c, a->fd < 0 ? PNO_CALL_GONE : PNO_CALL_TIMEOUT, a->why);
		TAILQ_REMOVE(&a->queued, c, at);
		pno_call_unref(c);
	}
	TAILQ_FOREACH(c, &a->sent, at) {
		if (now >= c->deadline)
			pno_call_complete(c, PNO_CALL_TIMEOUT, NULL);
		if (now >= c->deadline + PNO_AGENT_GRACE_MS * PNO_MS)
			prompt = false;
	}
	return prompt;
}
