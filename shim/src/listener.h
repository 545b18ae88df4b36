/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A listener: the part of struct pno_sock that waits for connections. The DPU
 * has it on every shard, and pushes connections to the channels that want them,
 * where they wait until accept takes them. All is guarded by the socket's lock,
 * except where noted.
 */
#ifndef PNO_LISTENER_H
#define PNO_LISTENER_H

#include "sock.h"

/* Unaccepted connections of one channel. */
struct pno_queue {
	struct pno_sock *head, *tail;
	_Atomic uint32_t n; /* read without the lock */
	uint16_t users;     /* epoll items that want connections here */
	bool sticky;        /* a blocking accept or poll wanted them */
	bool subscribed;
	uint8_t leaving; /* Unsubscribe replies outstanding, one a shard */
	uint32_t tag;    /* of that Unsubscribe */
};

struct pno_listener {
	struct pno_listener *next; /* all listeners */
	struct pno_sock *sock;
	uint32_t handle[PNO_MAX_SHARDS];
	uint64_t cookie; /* registered with hostd; 0: not */
	int backlog;
	bool lost;       /* the DPU is gone; to be listened to again */
	bool stopped;    /* by shutdown(), until listen() is called again */
	bool passed;     /* the DPU keeps it for whom it was sent to */
	uint32_t parked; /* on all queues */
	uint32_t last;   /* channel on which the DPU was last told of this listener */
	struct pno_queue q[PNO_MAX_CHANNELS];
};

/* True if connections wait that came by one of the channels, or by
 * one of which no epoll instance takes them. */
static inline bool pno_listener_ready(const struct pno_sock *s, uint64_t channels)
{
	const struct pno_queue *q = s->listener->q;

	for (; channels; channels &= channels - 1)
		if (atomic_load_explicit(&q[__builtin_ctzll(channels)].n, memory_order_relaxed))
			return true;
	for (unsigned i = 0; unlikely(s->listener->parked) && i < PNO_MAX_CHANNELS; i++)
		if (!q[i].users && atomic_load_explicit(&q[i].n, memory_order_relaxed))
			return true;
	return false;
}

/* The channels by which connections come. */
uint64_t pno_listener_channels(const struct pno_sock *s);

/* The channels to look at for news of a socket that has a home. */
static inline uint64_t pno_sock_channels(const struct pno_sock *s)
{
	uint64_t home = 1ull << s->qp->chan->index;

	return unlikely(s->state == PNO_LISTENING) ? home | pno_listener_channels(s) : home;
}

/* More or fewer epoll items want connections on a channel; or a blocking call does. */
void pno_listener_want(struct pno_sock *s, struct pno_chan *c, int users, bool sticky);
/* Has connections that came by a channel of no poller come by this one, now: a
 * poller that waits for edges would see them twice. Socket locked, but not
 * throughout. */
void pno_listener_gather(struct pno_sock *s, struct pno_chan *c);
/* Unsubscribes where nobody wants connections any more; but until a poller
 * sleeps, not where some wait: they would be gone for a moment. Those of a
 * listener that other processes have, too, go at once. */
void pno_listener_settle(bool sleeps);
extern atomic_bool pno_listener_unsettled;
/* This thread is about to sleep over something else: to be called while some
 * shared listener is wanted by blocking calls alone. */
void pno_listener_yield(void);
extern atomic_bool pno_listener_greedy;
/* An Accept came; an Unsubscribe was answered. */
void pno_listener_park(struct pno_session *ses, struct pno_qp *q, const struct pno_record *r,
		       const uint8_t *payload);
/* False: the Reply is to something else. */
bool pno_listener_unsubscribed(struct pno_sock *s, struct pno_chan *c, uint32_t tag);
/* A connection for the caller, out of the queues; NULL: none. */
struct pno_sock *pno_listener_take(struct pno_sock *s);
/* Listeners and datagram sockets that were lost with the DPU are opened again,
 * if there is one. */
void pno_listener_revive(void);
void pno_listener_empty(struct pno_sock *s);
void pno_listener_enlist(struct pno_listener *l);
/* The socket of the nth listener, not locked; NULL: there are fewer. */
struct pno_sock *pno_listener_nth(unsigned n);
/* Turns a bound socket into a listener: 0 or an errno. Socket locked. */
int pno_listener_open(struct pno_sock *s, int fd, int backlog);
void pno_listener_close(struct pno_sock *s);
/* shutdown() of a listener for reading; listen() again. Socket locked. */
void pno_listener_stop(struct pno_sock *s);
int pno_listener_resume(struct pno_sock *s, int backlog);
struct pno_sock *pno_listener_by_cookie(uint64_t cookie);
/* It is about to be sent to another process. Socket locked. */
void pno_listener_pass(struct pno_sock *s, int fd);
bool pno_listener_inherit(struct pno_sock *s, const struct pno_msg_socket *m);
void pno_listener_child(struct pno_sock *s);
void pno_listener_adopted(struct pno_sock *s);

#endif
