/* SPDX-License-Identifier: Apache-2.0 */

/*
 * fork: docs/protocol.md, section 7.
 *
 * Before: tell the DPU, on every shard, that a child will hold what we hold
 * (a random token names the grant), have what it has sent us until then in
 * private memory, and hold the locks, so that the child's copy of everything
 * is whole. After, in the parent: go on; its sockets are shared now. In the
 * child: nothing of the parent's session may be touched (its memory is not
 * even mapped here), its descriptors are closed, and every socket is away
 * until the first call that needs it attaches a session of our own.
 *
 * A child that only calls exec, as most do, pays for none of that.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "epoll.h"
#include "filestream.h"
#include "hostd.h"
#include "interrupt.h"
#include "listener.h"
#include "log.h"
#include "memory.h"
#include "real.h"
#include "relay.h"
#include "sock.h"
#include "stats.h"
#include "udp.h"
#include "wait.h"

static struct pno_session *forking;
static bool granted;
static uint8_t token[PNO_TOKEN_LEN];

static void drain_all(struct pno_session *ses)
{
	for (unsigned i = 0; i < atomic_load(&ses->nchan); i++)
		pno_chan_drain(ses->chan[i]);
}

static void count_one(struct pno_sock *s, void *arg)
{
	*(unsigned *)arg += pno_sock_offloaded(s);
}

/* Tells every shard; false: the child will inherit nothing. */
static bool grant(struct pno_session *ses)
{
	struct pno_sock nobody = { .ses = ses };
	struct pno_fork_req req;
	bool ok;

	/* FORKED is not answered: know before that there is somebody to hear. */
	pno_hostd_ready(ses);
	ok = getrandom(token, sizeof token, 0) == sizeof token;
	memcpy(req.token, token, sizeof req.token);
	for (unsigned i = 0; ok && i < ses->shards; i++) {
		struct pno_call call;
		struct pno_record r = { .op = PNO_OP_FORK, .len = sizeof req };

		pno_call_begin(ses->chan[0], &call);
		r.seq = call.tag;
		pno_sock_record(&nobody, &ses->chan[0]->qp[i], r, &req);
		ok = pno_call_wait(ses, &call) == 0;
	}
	if (!ok)
		pno_log(PNO_ERROR, "fork: the DPU does not share this process's sockets with its child");
	return ok;
}

/* Other threads open and close sockets meanwhile: what is thawed is what was
 * frozen, in use or not. */
static void freeze(struct pno_sock *s, void *arg)
{
	(void)arg;
	if (s->frozen)
		return;
	pno_lock(&s->lock);
	s->frozen = true;
	if (pno_sock_offloaded(s)) {
		pno_rx_spill_all(s);
		s->shared = granted;
		s->common |= granted;
	}
}

/* Listeners come first: who has one locked may want its connections. */
static void freeze_listener(struct pno_sock *s, void *arg)
{
	if (s->state == PNO_LISTENING)
		freeze(s, arg);
}

/* Parent and child are to see one file. */
static void share_files(void)
{
	for (unsigned fd = 0; fd < atomic_load(&pno_fd_top); fd++) {
		struct pno_obj *o = pno_fd_obj(fd);

		if (o && o->kind == PNO_KIND_SOCK && ((struct pno_sock *)o)->frozen)
			pno_share_file((struct pno_sock *)o, fd);
	}
}

static void thaw(struct pno_sock *s, void *arg)
{
	(void)arg;
	/* Who else holds the lock leaves the mark as it is: not set. */
	if (!s->frozen)
		return;
	s->frozen = false;
	pno_unlock(&s->lock);
}

static void before(void)
{
	unsigned offloaded = 0;
	int saved = errno;

	pno_relay_stop();
	pno_sock_each(count_one, &offloaded);
	/* A child that forks before it needed a session needs one now: its own
	 * child inherits from it. */
	forking = offloaded ? pno_session_get() : pno_session_now();
	granted = false;
	if (forking && offloaded) {
		drain_all(forking);
		granted = grant(forking);
		drain_all(forking);
		pno_count(forks);
	}
	pno_session_lock_all(forking);
	pno_sock_each(freeze_listener, NULL);
	pno_sock_each(freeze, NULL);
	if (granted)
		share_files();
	pno_memory_lock();
	errno = saved;
}

static void in_parent(void)
{
	pno_memory_unlock();
	pno_sock_each_slot(thaw, NULL);
	pno_session_unlock_all(forking);
	/* Connections that nobody here waits for may be meant for the child: a
	 * parent that has seen a listener readable forks who is to accept. */
	if (granted)
		pno_listener_yield();
	pno_relay_resume();
}

/* All of them before any is touched: a listener's lets go of others. */
static void reset_lock(struct pno_sock *s, void *arg)
{
	(void)arg;
	s->frozen = false;
	atomic_store(&s->lock.held, 0);
}

static void send_away(struct pno_sock *s, void *arg)
{
	(void)arg;
	if (s->state == PNO_LISTENING)
		pno_listener_child(s);
	if (!pno_sock_offloaded(s) || s->state == PNO_PARKED)
		return;
	s->ses = NULL;
	s->qp = NULL;
	s->ring_full = s->claiming = false;
	s->waiters = 0;
	s->away = true;
	if (s->udp)
		pno_udp_child(s);
	if (!granted && s->state != PNO_DEAD && s->state != PNO_LISTENING)
		pno_sock_die(s, ECONNRESET);
	pno_sock_refresh(s);
}

static void in_child(void)
{
	int saved = errno;

	pno_memory_unlock();
	pno_sock_child_locks();
	pno_close_child_locks();
	pno_listener_child_locks();
	pno_stdio_child_locks();
	pno_relay_child();
	pno_thread_set_chan(NULL);
	if (granted)
		pno_hostd_forked(token, getpid());
	pno_fd_disown_all();
	pno_placeholder_child();
	pno_session_child(granted ? token : NULL);
	pno_wait_child();
	pno_epoll_child();
	pno_sock_each_slot(reset_lock, NULL);
	pno_sock_each(send_away, NULL);
	pno_interrupts_child();
	errno = saved;
}

void pno_fork_start(void)
{
	pthread_atfork(before, in_parent, in_child);
}

/*
 * fork itself is taken over only to tell hostd the child's number, or that
 * there is no child: one that is killed before it could say so would leave its
 * share of our sockets behind. Forks inside libc (daemon) lack this.
 */
static void tell_hostd(pid_t pid)
{
	int saved = errno;

	if (!granted)
		return;
	pno_hostd_lock();
	pno_hostd_forked(token, pid > 0 ? pid : 0);
	pno_hostd_unlock();
	errno = saved;
}

PNO_EXPORT pid_t fork(void)
{
	pid_t pid;

	PNO_ENTER();
	pid = real.fork();
	if (pid != 0)
		tell_hostd(pid);
	return pid;
}

/* A fork that does not call the handlers: we do. */
static long forked(long pid)
{
	if (pid == 0) {
		in_child();
		return 0;
	}
	in_parent();
	tell_hostd(pid);
	return pid;
}

long pno_fork_raw(long number, long a, long b, long c, long d, long e)
{
	before();
	return forked(real.syscall(number, a, b, c, d, e));
}

PNO_EXPORT pid_t _Fork(void)
{
	PNO_ENTER();
	before();
	return forked(real._Fork());
}

struct entry {
	int (*fn)(void *);
	void *arg;
};

static int enter(void *arg)
{
	const struct entry *e = arg;

	in_child();
	return e->fn(e->arg);
}

/* What runs in this memory is a thread, or about to call exec; and who shares its
 * descriptors must not close ours. A child of its own goes by us, on the copy that it
 * has of our stack. The last three arguments are read, given or not. */
static __attribute__((no_sanitize("address"))) int clone_with(int (*fn)(void *), void *stack, int flags, void *arg,
							      va_list more)
{
	struct entry e = { fn, arg };
	pid_t *parent = va_arg(more, pid_t *);
	void *tls = va_arg(more, void *);
	pid_t *child = va_arg(more, pid_t *);

	if (flags & (CLONE_VM | CLONE_FILES) || !fn || !stack)
		return real.clone(fn, stack, flags, arg, parent, tls, child);
	before();
	return forked(real.clone(enter, stack, flags, &e, parent, tls, child));
}

PNO_EXPORT int clone(int (*fn)(void *), void *stack, int flags, void *arg, ...)
{
	va_list more;
	int pid;

	PNO_ENTER();
	va_start(more, arg);
	pid = clone_with(fn, stack, flags, arg, more);
	va_end(more);
	return pid;
}

PNO_EXPORT int __clone(int (*fn)(void *), void *stack, int flags, void *arg, ...)
{
	va_list more;
	int pid;

	PNO_ENTER();
	va_start(more, arg);
	pid = clone_with(fn, stack, flags, arg, more);
	va_end(more);
	return pid;
}

/* A vfork child runs on its parent's memory, descriptor table and all: what it
 * closes before exec would be closed for the parent. As a fork it is safe. */
PNO_EXPORT pid_t vfork(void)
{
	return fork();
}

/* The child's session holds every inherited socket, under the same handles. */
static void adopt(struct pno_sock *s, void *arg)
{
	struct pno_session *ses = arg;

	pno_lock(&s->lock);
	if (s->ses || !s->away || !pno_sock_offloaded(s)) {
		pno_unlock(&s->lock);
		return;
	}
	s->ses = ses;
	s->qp = &ses->chan[0]->qp[s->shard];
	s->rx_told = s->rx_read;
	if (s->state == PNO_LISTENING)
		pno_listener_adopted(s);
	else if (s->udp)
		pno_udp_adopted(s);
	else if (s->handle)
		pno_handle_enter(ses, s->shard, s->handle, s);
	if (s->state == PNO_LISTENING || s->state == PNO_DEAD || s->state == PNO_BOUND)
		s->away = false;
	pno_sock_refresh(s);
	pno_count(sockets_inherited);
	pno_epoll_adopted(s);
	pno_unlock(&s->lock);
}

void pno_fork_adopted(struct pno_session *ses)
{
	pno_sock_close_orphans(ses);
	pno_sock_each(adopt, ses);
}

/* How long to wait for the DPU to hand a connection over. */
#define CLAIM_NANOS 5000000000ll

/* Claims the socket, and waits until it is ours. Socket locked; false: it was
 * closed meanwhile. */
static bool bring_home(struct pno_sock *s, struct pno_session *ses)
{
	int64_t deadline = pno_now() + CLAIM_NANOS;
	uint32_t generation = s->generation;

	if (!ses || s->ses != ses) {
		s->away = false;
		s->ses = ses;
		pno_sock_die(s, ECONNRESET);
		return true;
	}
	while (s->away && (s->state == PNO_OPEN || s->state == PNO_DGRAM) && pno_now() < deadline) {
		struct timespec nap = { .tv_nsec = 50000 };
		struct pno_chan *c;

		if (!s->claiming)
			pno_sock_claim(s, pno_thread_chan(ses)); /* taken away again */
		c = s->qp->chan;
		pno_sock_unlock(s);
		if (!pno_chan_drain(c))
			nanosleep(&nap, NULL);
		if (pno_session_check(ses))
			deadline = 0;
		pno_lock(&s->lock);
		if (s->generation != generation)
			return false;
	}
	if (s->away) {
		s->away = false;
		pno_sock_die(s, ECONNRESET);
	}
	return true;
}

struct pno_sock *pno_sock_lock_away(int fd, struct pno_sock *s)
{
	struct pno_chan *chan = s->away || !s->qp ? NULL : s->qp->chan;
	struct pno_session *ses;

	s->via = fd;
	pno_sock_unlock(s);
	if (chan)
		pno_chan_drain(chan); /* another may have taken it */
	ses = pno_session_get();
	s = pno_sock_peek(fd);
	if (!s || !s->away)
		return s;
	if (s->state == PNO_LISTENING)
		return s; /* tried again at the next call */
	if (bring_home(s, ses) && pno_fd_obj(fd) == (struct pno_obj *)s)
		return s;
	pno_sock_unlock(s);
	return pno_sock_peek(fd);
}

/* Long enough for the other to get something done, too. */
#define YIELD_NANOS 20000000

int pno_sock_retake(struct pno_sock *s)
{
	struct timespec nap = { .tv_nsec = YIELD_NANOS };
	uint32_t generation = s->generation;

	pno_sock_unlock(s);
	nanosleep(&nap, NULL);
	pno_lock(&s->lock);
	if (s->generation != generation)
		return -EBADF;
	if (pno_handled)
		return -EINTR; /* two that keep taking it from each other never sleep */
	return !s->away || bring_home(s, pno_session_now()) ? 0 : -EBADF;
}
