/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Attach, map, channels, handles, requests.
 *
 * The geometry comes from hostd's WELCOME and is checked once; nothing that
 * decides where we write is ever read from the session memory, which the DPU
 * can change. Of its header only the status word is looked at.
 */
#include "session.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fault.h"
#include "fdtable.h"
#include "hostd.h"
#include "listener.h"
#include "log.h"
#include "memory.h"
#include "quiet.h"
#include "real.h"
#include "sock.h"
#include "stats.h"
#include "wait.h"

#define RETRY_NANOS 1000000000ll

static pthread_mutex_t attach_mutex = PTHREAD_MUTEX_INITIALIZER;
static struct pno_session *_Atomic current;
static uint8_t fork_token[PNO_TOKEN_LEN];
static bool forked;
static int fallback = PNO_ACTION_KERNEL, refusal;
static int64_t retry_at;

/* Held while hostd is asked, so it is one that sleeps. */
static void attach_lock(void)
{
	pno_section_enter();
	pthread_mutex_lock(&attach_mutex);
}

static void attach_unlock(void)
{
	pthread_mutex_unlock(&attach_mutex);
	pno_section_leave();
}

static bool ring_ok(uint32_t n)
{
	return n >= PNO_MIN_RING_SIZE && n <= PNO_MAX_RING_SIZE && !(n & (n - 1));
}

/* The same arithmetic as offload.Layout. */
static uint64_t ctl_size(uint32_t shards)
{
	return (shards * (uint64_t)PNO_QP_CTL_SIZE + 4095) & ~4095ull;
}

static bool geometry_ok(const struct pno_msg_welcome *w, int nfds)
{
	uint64_t stride;

	if (!ring_ok(w->h2d_size) || !ring_ok(w->d2h_size) || !w->shards || w->shards > PNO_MAX_SHARDS ||
	    !w->channels || w->channels > PNO_MAX_CHANNELS || w->nrules > PNO_MAX_RULES ||
	    w->rx_window < PNO_MAX_PAYLOAD || w->rx_window > w->d2h_size / 2 ||
	    w->tx_window < PNO_MAX_PAYLOAD || w->tx_window > PNO_MAX_RING_SIZE)
		return false;
	stride = ctl_size(w->shards) + w->shards * ((uint64_t)w->h2d_size + w->d2h_size);
	return w->channel_stride == stride && w->total_size == PNO_CHANNELS_OFF + w->channels * stride &&
	       nfds == (int)w->shards + 2;
}

/*
 * A part of the session's memory. Only channels in use are mapped: all of them
 * may be more than a program's RLIMIT_AS has room for.
 */
static uint8_t *map_part(int memory, uint64_t from, uint64_t size)
{
	void *m = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, memory, (off_t)from);

	if (m == MAP_FAILED)
		return NULL;
	/* A child must not write into its parent's rings. */
	madvise(m, size, MADV_DONTFORK);
	return m;
}

static struct pno_chan *chan_make(struct pno_session *ses, unsigned index, int memory)
{
	uint8_t *base = map_part(memory, PNO_CHANNELS_OFF + index * ses->channel_stride, ses->channel_stride);
	uint8_t *rings = base + ctl_size(ses->shards);
	struct pno_chan *c = base ? calloc(1, sizeof *c + ses->shards * sizeof c->qp[0]) : NULL;

	if (!c) {
		if (base)
			munmap(base, ses->channel_stride);
		return NULL;
	}
	c->index = index;
	c->irq = -1;
	c->base = base;
	c->ses = ses;
	for (unsigned i = 0; i < ses->shards; i++) {
		struct pno_qp *q = &c->qp[i];

		q->host = (void *)(base + i * PNO_QP_CTL_SIZE + PNO_HOST_LINE_OFF);
		q->dev = (void *)(base + i * PNO_QP_CTL_SIZE + PNO_DEV_LINE_OFF);
		q->h2d = rings + i * ((uint64_t)ses->h2d_size + ses->d2h_size);
		q->d2h = q->h2d + ses->h2d_size;
		q->h2d_size = ses->h2d_size;
		q->d2h_size = ses->d2h_size;
		q->lap = PNO_EARLY_LAP;
		q->chan = c;
		q->shard = i;
		q->doorbell = ses->doorbell[i];
	}
	return c;
}

static void chan_drop(struct pno_chan *c)
{
	if (c)
		munmap(c->base, c->ses->channel_stride);
	free(c);
}

static void chan_join(struct pno_session *ses, struct pno_chan *c, int irq)
{
	c->irq = irq;
	ses->chan[c->index] = c;
	atomic_store(&ses->nchan, c->index + 1);
	pno_count(channels);
}

/* The descriptors of fds are the session's, or closed. */
static struct pno_session *session_make(const struct pno_msg_welcome *w, const struct pno_fdset *fds)
{
	struct pno_session *ses = calloc(1, sizeof *ses);
	uint8_t *head = map_part(fds->fd[0], 0, PNO_CHANNELS_OFF);
	int own[PNO_MAX_SHARDS + 2];
	struct pno_chan *c;

	for (int i = 0; i < fds->n; i++)
		own[i] = pno_fd_own(fds->fd[i]);
	if (!ses || !head)
		goto fail;
	ses->id = w->session;
	ses->channel_stride = w->channel_stride;
	ses->features = w->features;
	ses->h2d_size = w->h2d_size;
	ses->d2h_size = w->d2h_size;
	ses->rx_window = w->rx_window;
	ses->tx_window = w->tx_window;
	ses->spin_nanos = w->spin_nanos;
	ses->channels = w->channels;
	ses->shards = w->shards;
	ses->default_action = w->default_action;
	ses->nrules = w->nrules;
	memcpy(ses->rules, w->rules, sizeof ses->rules);
	ses->own_used = 1; /* slot 0 stays free: a handle is never 0 */
	ses->header = (void *)head;
	ses->memory = own[0];
	memcpy(ses->doorbell, own + 1, ses->shards * sizeof own[0]);
	ses->dpu = calloc(w->shards, sizeof *ses->dpu);
	c = ses->dpu ? chan_make(ses, 0, ses->memory) : NULL;
	if (!c)
		goto fail;
	chan_join(ses, c, own[1 + ses->shards]);
	pno_stats_move((uint64_t *)(head + PNO_STATS_OFFSET));
	pno_fault_start();
	return ses;

fail:
	if (ses)
		free(ses->dpu);
	free(ses);
	if (head)
		munmap(head, PNO_CHANNELS_OFF);
	for (int i = 0; i < fds->n; i++)
		pno_fd_disown(own[i]);
	return NULL;
}

static struct pno_session *attach(void)
{
	struct pno_msg_welcome w;
	struct pno_fdset fds = { 0 };
	struct pno_session *ses;
	int err;

	err = pno_hostd_attach(forked ? fork_token : NULL, &w, &fds, &fallback);
	if (err) {
		pno_log_once("no offload: cannot attach to hostd: %s", strerror(err));
		refusal = err;
		return NULL;
	}
	if (!geometry_ok(&w, fds.n)) {
		pno_log_once("no offload: hostd sent a session layout that makes no sense");
		while (fds.n)
			quiet_close(fds.fd[--fds.n]);
		return NULL;
	}
	ses = session_make(&w, &fds);
	if (!ses) {
		pno_log_once("no offload: no memory for the session");
		refusal = ENOMEM;
	}
	forked = false;
	return ses;
}

struct pno_session *pno_session_now(void)
{
	struct pno_session *ses = atomic_load_explicit(&current, memory_order_acquire);

	return ses && !atomic_load_explicit(&ses->lost, memory_order_relaxed) ? ses : NULL;
}

struct pno_session *pno_session_get(void)
{
	struct pno_session *ses = pno_session_now();
	int saved = errno;
	bool adopted = false, child;

	if (likely(ses))
		return ses;
	attach_lock();
	ses = pno_session_now();
	child = forked;
	if (!ses && pno_now() >= retry_at) {
		ses = attach();
		adopted = ses && child;
		if (ses) {
			ses->former = atomic_load(&current);
			atomic_store_explicit(&current, ses, memory_order_release);
		} else {
			retry_at = pno_now() + RETRY_NANOS;
		}
	}
	attach_unlock();
	if (adopted)
		pno_fork_adopted(ses);
	errno = saved;
	return ses;
}

int pno_session_refusal(void)
{
	return fallback == PNO_ACTION_REFUSE ? refusal : 0;
}

void pno_session_lose_sock(struct pno_session *ses, struct pno_sock *s)
{
	if (s->ses != ses || s->state == PNO_FREE)
		return;
	if (s->state == PNO_LISTENING)
		s->listener->lost = true;
	else if (s->state == PNO_PARKED)
		s->err = ECONNRESET;
	else if (pno_sock_offloaded(s))
		pno_sock_die(s, ECONNRESET);
}

static void lose_sock(struct pno_sock *s, void *arg)
{
	pno_lock(&s->lock);
	pno_session_lose_sock(arg, s);
	pno_unlock(&s->lock);
}

void pno_session_lose(struct pno_session *ses, const char *why)
{
	if (atomic_exchange(&ses->lost, true))
		return;
	pno_count(session_lost);
	pno_log(PNO_ERROR, "the session with the DPU is over: %s; its connections are reset", why);
	pno_sock_each(lose_sock, ses);
	for (unsigned i = 0; i < atomic_load(&ses->nchan); i++)
		pno_chan_kick(ses->chan[i]);
}

bool pno_session_check(struct pno_session *ses)
{
	if (atomic_load_explicit(&ses->lost, memory_order_relaxed))
		return true;
	if (likely(pno_load32(&ses->header->status) == PNO_STATUS_UP))
		return false;
	pno_session_lose(ses, "hostd says that the DPU is gone");
	return true;
}

struct pno_chan *pno_chan_open(struct pno_session *ses)
{
	static atomic_uint next_shared;
	struct pno_msg_channel_open req = { 0 };
	struct pno_msg_channel ans;
	struct pno_fdset fds = { 0 };
	struct pno_chan *c = NULL;
	unsigned n;
	int err;

	attach_lock();
	n = atomic_load(&ses->nchan);
	if (ses->idle) {
		c = ses->chan[__builtin_ctzll(ses->idle)];
		ses->idle &= ses->idle - 1;
	} else if (n < ses->channels) {
		c = chan_make(ses, n, ses->memory); /* first: what hostd has opened is open */
		req.channel = n;
		err = c ? pno_hostd_ask(ses, &req, PNO_MSG_CHANNEL_OPEN, sizeof req, -1,
					&ans, PNO_MSG_CHANNEL, sizeof ans, &fds)
			: ENOMEM;
		if (!err && fds.n == 1) {
			chan_join(ses, c, pno_fd_own(fds.fd[0]));
		} else {
			pno_log_once("no channel %u: %s; pollers share one", n, strerror(err));
			chan_drop(c);
			c = NULL;
		}
	}
	attach_unlock();
	if (!c)
		c = ses->chan[atomic_fetch_add(&next_shared, 1) % atomic_load(&ses->nchan)];
	return c;
}

void pno_chan_close(struct pno_chan *c)
{
	attach_lock();
	if (c->index)
		c->ses->idle |= 1ull << c->index;
	attach_unlock();
}

void pno_chan_kick(struct pno_chan *c)
{
	uint64_t one = 1;
	int saved = errno;

	if (quiet_write(c->irq, &one, sizeof one) < 0)
		pno_log_once("cannot wake a sleeper: %s", strerror(errno));
	errno = saved;
}

static pno_slot_t *slot_at(struct pno_slots *t, uint32_t n)
{
	pno_slot_t **page = &t->page[n / PNO_SLOT_PAGE];

	if (!*page) {
		pno_slot_t *fresh = pno_calloc(PNO_SLOT_PAGE, sizeof **page);

		if (!fresh)
			return NULL;
		__atomic_store_n(page, fresh, __ATOMIC_RELEASE);
	}
	return &(*page)[n % PNO_SLOT_PAGE];
}

static void occupy(pno_slot_t *slot, uint32_t handle, struct pno_sock *s)
{
	__atomic_store_n(slot, pno_slot_tag(handle) | (uintptr_t)s, __ATOMIC_RELEASE);
}

/* Slots come back in the order they were freed, so that a number rests as long
 * as possible before it is used under its next generation. */
uint32_t pno_handle_new(struct pno_session *ses, struct pno_sock *s)
{
	pno_slot_t *slot;
	uint32_t n, gen, handle;

	pno_lock(&ses->slot_lock);
	if (ses->free_first && ses->own_used > PNO_SLOT_PAGE) {
		n = ses->free_first;
		slot = slot_at(&ses->own, n);
		ses->free_first = *slot & PNO_HANDLE_SLOT_MASK;
		if (!ses->free_first)
			ses->free_last = 0;
	} else if (ses->own_used <= PNO_HANDLE_SLOT_MASK && (slot = slot_at(&ses->own, ses->own_used))) {
		n = ses->own_used++;
	} else {
		pno_unlock(&ses->slot_lock);
		return 0;
	}
	gen = ((*slot >> (PNO_SLOT_TAG + PNO_HANDLE_GEN_SHIFT - 16)) + 1) & PNO_HANDLE_GEN_MASK;
	handle = PNO_HANDLE_HOST | gen << PNO_HANDLE_GEN_SHIFT | n;
	occupy(slot, handle, s);
	pno_unlock(&ses->slot_lock);
	return handle;
}

bool pno_handle_enter(struct pno_session *ses, unsigned shard, uint32_t handle, struct pno_sock *s)
{
	struct pno_slots *t = handle & PNO_HANDLE_HOST ? &ses->own : &ses->dpu[shard];
	pno_slot_t *slot;
	uint32_t n = handle & PNO_HANDLE_SLOT_MASK;

	pno_lock(&ses->slot_lock);
	slot = slot_at(t, n);
	if (slot) {
		occupy(slot, handle, s);
		if (handle & PNO_HANDLE_HOST && n >= ses->own_used)
			ses->own_used = n + 1;
	}
	pno_unlock(&ses->slot_lock);
	return slot;
}

void pno_handle_drop(struct pno_session *ses, unsigned shard, uint32_t handle)
{
	struct pno_slots *t = handle & PNO_HANDLE_HOST ? &ses->own : &ses->dpu[shard];
	uint32_t n = handle & PNO_HANDLE_SLOT_MASK;
	pno_slot_t *slot, *last;

	pno_lock(&ses->slot_lock);
	slot = slot_at(t, n);
	if (slot && pno_handle_sock(ses, shard, handle)) {
		__atomic_store_n(slot, pno_slot_tag(handle) ^ PNO_SLOT_FREE, __ATOMIC_RELEASE);
		if (handle & PNO_HANDLE_HOST) {
			last = ses->free_last ? slot_at(t, ses->free_last) : NULL;
			if (last)
				__atomic_store_n(last, *last | n, __ATOMIC_RELAXED);
			else
				ses->free_first = n;
			ses->free_last = n;
		}
	}
	pno_unlock(&ses->slot_lock);
}

void pno_call_begin(struct pno_chan *chan, struct pno_call *c)
{
	struct pno_session *ses = chan->ses;

	pno_section_enter();
	c->chan = chan;
	c->tag = atomic_fetch_add(&ses->tag, 1) + 1;
	if (!c->tag)
		c->tag = atomic_fetch_add(&ses->tag, 1) + 1;
	c->len = c->err = 0;
	atomic_store(&c->done, false);
	pno_lock(&ses->call_lock);
	c->next = ses->calls;
	ses->calls = c;
	pno_unlock(&ses->call_lock);
}

static bool call_done(void *arg)
{
	return atomic_load_explicit(&((struct pno_call *)arg)->done, memory_order_acquire);
}

#define REPLY_SECONDS 30

int pno_call_wait(struct pno_session *ses, struct pno_call *c)
{
	int64_t deadline = pno_now() + REPLY_SECONDS * 1000000000ll;
	uint64_t channel = 1ull << c->chan->index;
	struct pno_call **p;
	unsigned handled = 0;
	sigset_t all;
	int rc = 0;

	sigfillset(&all);
	while (!call_done(c) && rc != -ETIMEDOUT && !pno_session_check(ses)) {
		pno_chan_drain(c->chan);
		/* The wait that this may be a part of has to know. */
		handled |= __atomic_exchange_n(&pno_handled, 0, __ATOMIC_RELAXED);
		if (!call_done(c) && !pno_spin(ses, channel, call_done, c))
			rc = pno_sleep(ses, channel, call_done, c, NULL, 0, &all, deadline);
	}
	pno_handled |= handled;
	pno_lock(&ses->call_lock);
	for (p = &ses->calls; *p && *p != c; p = &(*p)->next)
		;
	if (*p)
		*p = c->next;
	pno_unlock(&ses->call_lock);
	pno_section_leave();
	if (call_done(c))
		return c->err;
	return rc == -ETIMEDOUT ? ETIMEDOUT : ENETDOWN;
}

void pno_call_reply(struct pno_session *ses, const struct pno_record *r, const uint8_t *payload)
{
	struct pno_chan *chan = NULL;

	pno_lock(&ses->call_lock);
	for (struct pno_call *c = ses->calls; c; c = c->next) {
		if (c->tag != r->seq)
			continue;
		c->err = r->ack;
		c->len = r->len < sizeof c->payload ? r->len : sizeof c->payload;
		memcpy(c->payload, payload, c->len);
		chan = c->chan;
		atomic_store_explicit(&c->done, true, memory_order_release);
		break;
	}
	pno_unlock(&ses->call_lock);
	/* The caller may sleep while another thread drained this. */
	if (chan && !__libc_single_threaded)
		pno_chan_kick(chan);
}

void pno_session_lock_all(struct pno_session *ses)
{
	attach_lock();
	pno_hostd_lock();
	for (unsigned i = 0; ses && i < atomic_load(&ses->nchan); i++)
		pno_lock(&ses->chan[i]->lock);
}

void pno_session_unlock_all(struct pno_session *ses)
{
	for (unsigned i = 0; ses && i < atomic_load(&ses->nchan); i++)
		pno_unlock(&ses->chan[i]->lock);
	pno_hostd_unlock();
	attach_unlock();
}

void pno_session_child(const uint8_t *token)
{
	pthread_mutex_init(&attach_mutex, NULL);
	atomic_store(&current, NULL);
	retry_at = 0;
	forked = token;
	if (token)
		memcpy(fork_token, token, sizeof fork_token);
	pno_stats_move(NULL);
	pno_hostd_child();
}
