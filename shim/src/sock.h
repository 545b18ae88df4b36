/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A socket, as the program sees it.
 *
 *   FRESH       made by socket(); the kernel's, until bind or connect decides
 *   BOUND       bound on the DPU
 *   LISTENING
 *   CONNECTING  Connect sent, no answer yet
 *   OPEN        connected (each half may be shut)
 *   DEAD        reset, refused, or lost: err once, then end of file / EPIPE
 *   PARKED      accepted by the DPU, not yet by the program: no descriptor
 *   DGRAM       UDP on the DPU, bound or connected: see udp.h
 *
 * All fields are guarded by lock, except where noted. mask is what poll would
 * say, kept up to date by whoever changes something (pno_sock_refresh), so
 * that readiness is one load.
 *
 * Objects come from slabs and go back to a free list, never to malloc: see
 * fdtable.h.
 */
#ifndef PNO_SOCK_H
#define PNO_SOCK_H

#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>

#include "fdtable.h"
#include "pipe.h"
#include "session.h"

enum pno_state {
	PNO_FREE,
	PNO_FRESH,
	PNO_BOUND,
	PNO_LISTENING,
	PNO_CONNECTING,
	PNO_OPEN,
	PNO_DEAD,
	PNO_PARKED,
	PNO_DGRAM,
};

struct pno_epoll;
struct pno_listener;
struct pno_udp;

/* One registration of a socket in an epoll instance. */
struct pno_item {
	struct pno_item *in_sock;                /* next of the same socket */
	struct pno_item *in_ep, **in_ep_link;    /* list of the epoll instance */
	struct pno_item *ready, *ready_prev;     /* its ready list (epoll's lock) */
	struct pno_epoll *ep;
	struct pno_sock *sock;
	uint64_t data;
	uint32_t events; /* 0 once a ONESHOT has fired */
	int fd;
	int16_t home;   /* channel that it is counted for in its epoll; -1: none */
	bool queued;    /* on the ready list */
	bool in_kernel; /* the socket is still the kernel's: so is this */
};

/* Options set before the socket had a place on the DPU, and what accepted
 * sockets were told: replayed, and read back. */
struct pno_opt {
	struct pno_opt *next;
	int16_t level, name;
	uint8_t len, room;
	bool forward; /* the DPU has to know */
	uint8_t val[]; /* room bytes, zero beyond len; most connections have one */
};

/* What the connections of a listener have of it: a copy, never changed. */
struct pno_optset {
	atomic_uint refs;
	struct pno_opt *list;
};

/* An address that takes no more room than IPv4's: others are in pno_more. */
struct pno_end {
	uint8_t ip[4];
	uint16_t port;
	uint8_t family; /* as in pno_addr; 0: none */
};

/* What most connections do without: pno_sock_more makes it. */
struct pno_more {
	struct pno_addr local, peer;  /* of IPv6 */
	struct pno_opt *opts;         /* other than flags */
	struct pno_optset *inherited; /* of a listener: for those to come */
	uint32_t rx_limit, tx_limit;  /* of the windows, by SO_RCVBUF and SO_SNDBUF; 0: none */
};

/* One for each connection of which thousands may be idle, so it is kept small:
 * flags are bits, and what few have is elsewhere. */
struct pno_sock {
	uint8_t kind; /* PNO_KIND_SOCK */
	uint8_t state;
	uint8_t domain;        /* AF_INET or AF_INET6, of the program's socket */
	uint8_t shard;
	bool nonblock : 1;
	bool own_file : 1;     /* the placeholder is not a copy of the template */
	bool pair : 1;         /* it is one end of a Unix socket pair: pass.c */
	bool common : 1;       /* others may have set something on it since it was looked at */
	bool kept : 1;         /* the DPU keeps it for whom it was sent to */
	bool kernel_bound : 1;
	bool made_here : 1;    /* by socket(): what was set on it is in opts */
	bool late_bound : 1;   /* so is the placeholder, in the DPU's stead until connect */
	bool shared : 1;       /* another session may hold it too */
	bool away : 1;         /* shared, and not at home here: claim before use */
	bool claiming : 1;     /* Claim sent, Claimed to come */
	bool shut_rd : 1, shut_wr : 1;
	bool fin : 1;          /* the end of the stream is known: rx_fin */
	bool ring_full : 1;    /* on the ring's list of waiters */
	bool linger_reset : 1;
	bool sent_blind : 1;   /* sent, and not received since */
	bool append : 1;       /* O_APPEND, of a file that is not its own */
	bool connect_told : 1; /* connect() has reported success once */
	bool bound : 1;        /* Bind holds the port on shard 0 */
	bool any_port : 1;     /* it has left the choice to the DPU */
	bool unconnected : 1;  /* DEAD, and connect() has said why: as before it */
	bool rebound : 1;      /* DEAD, and bound since */
	bool stranger : 1;     /* from another process, and never at home here */
	bool frozen : 1;       /* locked for the time of a fork */
	bool hold : 1;         /* spliced: the DPU keeps what it receives, and tells how much */
	bool settling : 1;     /* and is giving it back */
	bool moved : 1;        /* some of what is not acknowledged was, by Move */
	bool limited : 1;      /* its windows are less than the session's: rx_limit, tx_limit */
	pno_lock_t lock;
	_Atomic uint32_t mask; /* EPOLL…, read without the lock */
	_Atomic uint32_t arrivals; /* Data records, likewise */
	uint32_t handle;
	uint32_t waiters;      /* threads blocked on it outside epoll */
	int nfds;              /* descriptors */
	int via;               /* shared: the descriptor that a call last used */
	union {
		uint32_t stood;   /* shared: received when its standing was told */
		uint32_t relayed; /* not shared: where the last relay ended */
	};
	_Atomic uint32_t generation; /* read without the lock */
	int rcvlowat;          /* SO_RCVLOWAT; 0 is 1 */
	int16_t err;           /* SO_ERROR */
	uint8_t standing;      /* away: PNO_STANDING_…, as last told */
	uint8_t bind_flags;    /* PNO_BIND_… of the last Connect */
	uint8_t flags_set, flags_on; /* options that are on or off: optlist.c */
	/* Splicing, see relay.c. */
	uint8_t relays;        /* in a row, without a read */
	uint8_t patience;      /* how many of them it takes */
	uint8_t hold_generation;
	_Atomic uint32_t lent; /* the last bytes before rx_read, which a pipe has */
	uint32_t rx_fin;       /* where the stream ends, of rx_next's low half */
	uint32_t rcv_millis, snd_millis; /* SO_RCVTIMEO, SO_SNDTIMEO; 0: none */

	struct pno_qp *qp; /* of its home channel; NULL: not on the DPU */
	uint64_t former;   /* channels it was claimed away from, until Claimed */
	struct pno_session *ses;

	uint64_t tx_sent, tx_acked;
	uint64_t rx_read;  /* consumed by the program */
	uint64_t rx_next;  /* contiguous up to here; on hold: beyond the segments it is the DPU that has it */
	uint64_t rx_told;  /* consumption last reported */
	struct pno_seg *rx_head, *rx_tail;

	struct pno_item *items;
	struct pno_item first_item;
	struct pno_listener *listener; /* or what it was, until it is freed */
	struct pno_udp *udp; /* a datagram socket's */
	struct pno_sock *next_parked; /* of the listener's queue, or free list */
	struct pno_sock *next_space;  /* of the ring's waiters (tx_lock) */
	struct pno_more *more;        /* never NULL: nothing, if there is none of it */
	uint64_t cookie; /* of its placeholder, once it was passed on; 0: not */
	struct pno_end local, peer;
};

/* A drain notes here what has to be done after its locks are released. */
struct pno_drain {
	uint64_t also; /* channels to drain, too */
	const char *violation;
};

/* A new object for a socket of the kernel's. */
struct pno_sock *pno_sock_new(int domain);
/* Room for what most do without; NULL: out of memory. */
struct pno_more *pno_sock_more(struct pno_sock *s);
/* Its addresses. Out of memory, an IPv6 address is forgotten. */
struct pno_addr pno_sock_local(const struct pno_sock *s);
struct pno_addr pno_sock_peer(const struct pno_sock *s);
void pno_sock_set_local(struct pno_sock *s, const struct pno_addr *a);
void pno_sock_set_peer(struct pno_sock *s, const struct pno_addr *a);
/* Back to the free list. Nothing may refer to it. */
void pno_sock_free(struct pno_sock *s);
/* Calls fn for every object in use. */
void pno_sock_each(void (*fn)(struct pno_sock *, void *), void *arg);
void pno_sock_each_slot(void (*fn)(struct pno_sock *, void *), void *arg); /* also those not in use */

/* The socket behind a descriptor, locked; NULL if it is the kernel's. */
static inline struct pno_sock *pno_sock_peek(int fd)
{
	for (;;) {
		struct pno_obj *o = pno_fd_obj(fd);
		struct pno_sock *s = (struct pno_sock *)o;

		if (likely(!o))
			return NULL;
		if (unlikely(o->kind != PNO_KIND_SOCK)) {
			if (o->kind == PNO_KIND_PIPE)
				pno_pipe_leave((struct pno_pipe *)o);
			return NULL;
		}
		pno_lock(&s->lock);
		if (likely(pno_fd_obj(fd) == o))
			return s;
		pno_unlock(&s->lock);
	}
}

/*
 * The same, ready for use: sockets inherited by fork, or used last by another
 * process, are brought home first.
 */
struct pno_sock *pno_sock_lock_away(int fd, struct pno_sock *s);

/*
 * A call that waits finds the socket gone to another process, which uses it:
 * gives that one a while, and takes it back. Socket locked; 0 or -EBADF.
 */
int pno_sock_retake(struct pno_sock *s);

static inline struct pno_sock *pno_sock_lock(int fd)
{
	struct pno_sock *s = pno_sock_peek(fd);

	if (unlikely(s && (s->away || s->shared)))
		return pno_sock_lock_away(fd, s);
	return s;
}

/* For what any holder may do: taking the socket from the process that uses it
 * would be wrong. */
static inline struct pno_sock *pno_sock_lock_here(int fd)
{
	struct pno_sock *s = pno_sock_peek(fd);

	if (unlikely(s && s->away && !s->ses))
		return pno_sock_lock_away(fd, s);
	return s;
}

static inline void pno_sock_unlock(struct pno_sock *s)
{
	pno_unlock(&s->lock);
}

/* True if the object's calls are answered by the shim. */
static inline bool pno_sock_offloaded(const struct pno_sock *s)
{
	return s->state >= PNO_BOUND;
}

/* Recomputes mask. */
void pno_sock_refresh(struct pno_sock *s);
/* All that wait hear of a change of state, as in the kernel: one more edge for
 * whatever is true. */
#define PNO_STATE_CHANGE (~0u)
/* The socket that this thread waits for outside epoll. */
extern __thread struct pno_sock *pno_waits_for __attribute__((tls_model("initial-exec")));

/* Somebody else waits for it: who finds news himself needs no wake-up, which
 * would only end his next sleep. */
static inline bool pno_sock_awaited(const struct pno_sock *s)
{
	return unlikely(s->waiters) && !__libc_single_threaded && !(s->waiters == 1 && pno_waits_for == s);
}

/* Tells epolls and waiters. */
void pno_sock_tell(struct pno_sock *s, uint32_t bits);
/* Something happened (EPOLL… bits): refreshes, and tells. */
void pno_sock_event(struct pno_sock *s, uint32_t bits);
/* Takes in what the DPU has posted, unlocking meanwhile: a program may poll
 * with calls that neither wait nor read. False: the socket has been closed. */
bool pno_sock_look(struct pno_sock *s);
/* Bytes that the DPU's stack has not taken; asks it. 0 or EBADF. */
int pno_sock_unsent(struct pno_sock *s, uint64_t *n);
/* The connection is over. */
void pno_sock_die(struct pno_sock *s, int err);

/* Readable bytes in order. */
static inline uint64_t pno_sock_unread(const struct pno_sock *s)
{
	return s->rx_next - s->rx_read;
}

/*
 * A connection that is open, at home here, writable, and of which neither an
 * error nor an end is known to poll: mask says all that in one load. While it
 * is so, what data changes is one bit, and pno_sock_refresh can be spared. (One
 * that is away may look alike, but a call has brought it home by then.)
 */
static inline bool pno_sock_flows(const struct pno_sock *s)
{
	uint32_t m = atomic_load_explicit(&s->mask, memory_order_relaxed);

	return s->state == PNO_OPEN && (m & (EPOLLOUT | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) == EPOLLOUT;
}

/* Data came, or went, of a connection that flows. */
static inline void pno_sock_readable(struct pno_sock *s, bool yes)
{
	const uint32_t in = EPOLLIN | EPOLLRDNORM;
	uint32_t m = atomic_load_explicit(&s->mask, memory_order_relaxed);

	atomic_store_explicit(&s->mask, yes ? m | in : m & ~in, memory_order_relaxed);
}

/* What the DPU may forget. */
static inline uint64_t pno_sock_consumed(const struct pno_sock *s)
{
	return s->rx_read - atomic_load_explicit(&s->lent, memory_order_relaxed);
}

/* The windows: the session's, or what the buffer sizes left of them. */
static inline uint32_t pno_sock_rx_window(const struct pno_sock *s)
{
	uint32_t window = s->ses->rx_window;

	return unlikely(s->limited) && s->more->rx_limit && s->more->rx_limit < window ? s->more->rx_limit : window;
}

static inline uint32_t pno_sock_tx_window(const struct pno_sock *s)
{
	uint32_t window = s->ses->tx_window;

	return unlikely(s->limited) && s->more->tx_limit && s->more->tx_limit < window ? s->more->tx_limit : window;
}

/* How much must be there to count as readable. A window is never fuller than
 * full. */
static inline uint64_t pno_sock_lowat(const struct pno_sock *s)
{
	uint64_t most = s->ses ? pno_sock_rx_window(s) / 2 : 1;

	if (likely(s->rcvlowat <= 1))
		return 1;
	return (uint64_t)s->rcvlowat < most ? (uint64_t)s->rcvlowat : most;
}

/* The peer has ended, and everything before the end is here. */
static inline bool pno_sock_ended(const struct pno_sock *s)
{
	return s->fin && ((uint32_t)s->rx_next == s->rx_fin || s->shut_rd);
}

/* Both ends have ended, and the kernel would have forgotten the peer. */
static inline bool pno_sock_over(const struct pno_sock *s)
{
	return s->shut_wr && (s->shut_rd ? s->fin : pno_sock_ended(s));
}

/* What was moved is acknowledged late, so it has a larger window, and what is
 * sent after it has the same. */
static inline uint64_t pno_sock_window(const struct pno_sock *s)
{
	uint64_t out = s->tx_sent - s->tx_acked, window = pno_sock_tx_window(s);

	if (unlikely(s->moved) && !s->more->tx_limit && window < PNO_MOVE_WINDOW)
		window = PNO_MOVE_WINDOW;
	return out < window ? window - out : 0;
}

/* Received bytes: into the stream (drain), off the front (read). */
int pno_rx_insert(struct pno_sock *s, struct pno_qp *q, uint32_t off, const uint8_t *data,
		  uint32_t len, uint64_t start, uint32_t drain);
void pno_rx_append(struct pno_sock *s, struct pno_seg *g);
void pno_rx_drop(struct pno_sock *s, struct pno_seg *g);
void pno_rx_drop_head(struct pno_sock *s);
void pno_rx_drop_all(struct pno_sock *s);
/* Moves a held segment to private memory. Called with the channel's lock. */
void pno_rx_spill(struct pno_seg *g);
void pno_rx_spill_all(struct pno_sock *s);

/*
 * Writes a record of the socket; waits for ring space if it must (never long:
 * the DPU always consumes). False: the session is lost.
 */
bool pno_sock_record(struct pno_sock *s, struct pno_qp *q, struct pno_record r, const void *payload);
/* Puts it on a ring's list of those who wait for space. Producer locked. */
void pno_sock_want_space(struct pno_sock *s, struct pno_qp *q);
/* Takes it off the list. */
void pno_sock_leave_space(struct pno_sock *s);
/* Enough has gathered that the DPU should hear of it even without a Send. */
static inline bool pno_sock_ack_due(const struct pno_sock *s)
{
	return pno_sock_consumed(s) - s->rx_told >= pno_sock_rx_window(s) / 4;
}
/* Reports consumption, now or when enough has gathered. */
void pno_sock_ack(struct pno_sock *s, bool now);
/* Makes c the socket's home. */
void pno_sock_claim(struct pno_sock *s, struct pno_chan *c);
/* Sends a socket's remembered options to the DPU. */
void pno_sock_send_opts(struct pno_sock *s);

/* Drains every ring of the channel: true if records came. */
bool pno_chan_drain(struct pno_chan *c);
/* The same with the channel's lock held; the caller finishes d. */
bool pno_chan_drain_locked(struct pno_chan *c, struct pno_drain *d);
void pno_drain_finish(struct pno_session *ses, struct pno_drain *d);

/* The channel that this thread polls; channel 0 if none. */
struct pno_chan *pno_thread_chan(struct pno_session *ses);
void pno_thread_set_chan(struct pno_chan *c);

/* addr.c: 0 or an errno; a v4-mapped address is an IPv4 one on the DPU. The
 * first wants memory that is there, the second copes. */
int pno_addr_from(const struct sockaddr *sa, socklen_t len, struct pno_addr *a);
int pno_addr_to(const struct pno_addr *a, int domain, struct sockaddr *sa, socklen_t *len);
/* A group, or all: what the offload does not do. */
bool pno_addr_to_many(const struct pno_addr *a);
/* This host, by 127.0.0.0/8 or ::1. */
bool pno_addr_loopback(const struct pno_addr *a);

/* A descriptor of the socket; -1: none. */
int pno_sock_descriptor(const struct pno_sock *s);

/* share.c: the placeholder as what several processes know of a socket. Socket
 * locked. */
/* Gives a connection that is about to be shared a file of its own. */
void pno_share_file(struct pno_sock *s, int fd);
/* The settings that others may have changed, before a call waits or says that
 * it would. */
void pno_share_attune(struct pno_sock *s);
/* All that the placeholder of a socket from elsewhere says. */
void pno_share_recall(struct pno_sock *s, int fd);
/* A new placeholder gets what the present one has of SOL_SOCKET. */
void pno_share_furnish(const struct pno_sock *s, int fd, int file);
/* Another process tells: the connection's standing. */
void pno_share_standing(struct pno_sock *s, const struct pno_record *r);

/* close.c: a descriptor goes; with the last one the socket does. Socket locked
 * on entry, unlocked on return. */
void pno_sock_close_fd(struct pno_sock *s, int fd);
/* Sends Close for what the DPU holds, and gives up the handle. */
void pno_sock_release(struct pno_sock *s);
/* An undecided socket is the kernel's for good: forgets it, and unlocks. */
void pno_sock_to_kernel(struct pno_sock *s, int fd);
/* A socket that a child closes before it has a session; when it has one, their
 * Close is due. */
void pno_sock_orphan(struct pno_sock *s);
void pno_sock_close_orphans(struct pno_session *ses);

/* exec.c: keeps the environment that loaded us. */
void pno_exec_start(void);

/* fork.c */
void pno_fork_start(void);
/* A system call that forks, past libc, and so past its fork handlers. */
long pno_fork_raw(long number, long a, long b, long c, long d, long e);
/* The child of a fork has attached: its inherited sockets live in ses. */
void pno_fork_adopted(struct pno_session *ses);

/* Leaf locks that another thread may have held when fork was called. */
void pno_sock_child_locks(void);
void pno_close_child_locks(void);
void pno_listener_child_locks(void);
/* intercept_socket.c */
void pno_placeholder_child(void);

/* endpoint.c: socket locked on entry and return; 0 or an errno. */
int pno_sock_bind(struct pno_sock *s, int fd, struct pno_session *ses, const struct sockaddr *sa, socklen_t len);
int pno_sock_listen(struct pno_sock *s, int fd, struct pno_session *ses, int backlog);
int pno_sock_connect(struct pno_sock *s, int fd, struct pno_session *ses, const struct sockaddr *sa, socklen_t len);
/* Waits a moment for the answer to a connect that is under way. */
void pno_sock_settle(struct pno_sock *s);
/* It has been bound to an address of IPv6. */
void pno_sock_only_v6(struct pno_sock *s, int fd);
/* A connection that is over has given its port back, unless bind had named it. */
bool pno_sock_gave_port_back(const struct pno_sock *s);
/* connect() to AF_UNSPEC. */
int pno_sock_disconnect(struct pno_sock *s, int fd);
/* PNO_BIND_… of the options set on the placeholder. */
uint32_t pno_sock_bind_flags(const struct pno_sock *s, int fd);
/* Sends a request about the socket and waits for its Reply, unlocked. */
int pno_sock_ask(struct pno_sock *s, struct pno_qp *q, struct pno_record r, const void *payload, struct pno_call *c);

/* rx.c, tx.c: socket locked on entry, unlocked on return; bytes or -errno. */
ssize_t pno_sock_recv(struct pno_sock *s, const struct iovec *iov, size_t n, int flags);
/* What a read finds when nothing is there: 0, -errno, or 1 (nothing yet). Stays locked. */
int pno_sock_instead(struct pno_sock *s);
/* Takes bytes that are here; stays locked. */
size_t pno_sock_copy(struct pno_sock *s, const struct iovec *v);
ssize_t pno_sock_send(struct pno_sock *s, const struct iovec *iov, size_t n, int flags);
ssize_t pno_sock_sendfile(struct pno_sock *s, int in, off_t *offset, size_t count);
ssize_t pno_sock_from_pipe(struct pno_sock *s, int in, size_t count);

/* optlist.c: what an accepted connection has of its listener (both locked);
 * forgets a socket's options; finds one, its listener's too; keeps a value;
 * tells the DPU; tells it and waits for its errno. */
void pno_sock_inherit_opts(struct pno_sock *c, struct pno_sock *l);
void pno_sock_forget_opts(struct pno_sock *s);
const struct pno_opt *pno_opt_find(const struct pno_sock *s, int level, int name);
const struct pno_opt *pno_opt_keep(struct pno_sock *s, int level, int name, const void *val, socklen_t len, bool forward);
void pno_opt_tell(struct pno_sock *s, const struct pno_opt *o);
/* Calls fn for each that is remembered, the oldest first. */
void pno_opt_each(const struct pno_sock *s, void (*fn)(const struct pno_opt *o, void *arg), void *arg);
int pno_opt_ask(struct pno_sock *s, int level, int name, const void *val, socklen_t len);
/* options.c: socket locked; 0, an errno, or -1: ask the placeholder. */
int pno_sock_setopt(struct pno_sock *s, int fd, int level, int name, const void *val, socklen_t len);
/* What was set on a fresh socket's placeholder by another process. */
void pno_sock_recall_opts(struct pno_sock *s, int fd);
/* All zero. */
bool pno_option_is_off(const void *val, socklen_t len);
/* True: hostd has a say in who may set it, so there must be a session. */
bool pno_option_is_granted(int level, int name);
int pno_sock_getopt(struct pno_sock *s, int level, int name, void *val, socklen_t *len);

/* inherit.c: descriptors that came by exec or SCM_RIGHTS. */
void pno_inherit_all(void);
void pno_inherit_message(struct msghdr *m);
/* The descriptor was taken from another process, which did nothing to hand it
 * over. False: it may stand for a connection, of which this one has nothing. */
bool pno_inherit_fetched(int fd);

#endif
