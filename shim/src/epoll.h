/* SPDX-License-Identifier: Apache-2.0 */

/*
 * An epoll instance: the kernel's, for the kernel's descriptors, and a ready
 * list for offloaded sockets, which are never in the kernel's set. What it
 * sleeps on is a set of the shim's own, so that nothing of ours makes the
 * program's descriptor readable.
 */
#ifndef PNO_EPOLL_H
#define PNO_EPOLL_H

#include "sock.h"

struct pno_epoll {
	uint8_t kind; /* PNO_KIND_EPOLL */
	int fd;
	int nfds; /* descriptors that name it */
	pno_lock_t lock; /* all below; what is atomic is read without it, too */
	struct pno_item *items;
	atomic_uint nitems;  /* of offloaded sockets */
	atomic_uint nkernel; /* descriptors in the kernel's set, at most */
	struct pno_item *ready_head, *ready_tail;
	atomic_int bed;      /* our set to sleep on: fd, and the interrupts; 0: none */
	unsigned sleepers;
	atomic_uint raw;     /* of them, those that sleep on fd itself */
	bool kicked;         /* since the sleepers last looked */
	atomic_uint since_kernel; /* calls answered without asking the kernel */
	struct pno_session *_Atomic ses;
	struct pno_chan *_Atomic chan; /* the channel of this poller; NULL until needed */
	/* All channels that deliver to it (read without the lock, too): its own,
	 * and the homes of its sockets, each with the number of such items. */
	_Atomic uint64_t channels;
	uint32_t homes[PNO_MAX_CHANNELS];
	/* Instances within it, and how it tells those that it is in. */
	struct pno_epoll **inner;
	atomic_uint ninner;
	_Atomic uint64_t inner_channels; /* heard for them, too */
	atomic_int beacon; /* 0: none */
};

extern char pno_epoll_ours; /* its address marks our entries in a kernel set */

/* Puts an item on its ready list and wakes the instance's sleepers. */
void pno_epoll_push(struct pno_item *it);
/* Takes a queued item off the ready list. Called with the instance's lock. */
void pno_epoll_unready(struct pno_epoll *ep, struct pno_item *it);
/* Takes an item out: its socket is locked. */
void pno_epoll_remove(struct pno_item *it);
/* The socket is going to the DPU: registrations move from the kernel to us. */
void pno_epoll_convert(struct pno_sock *s);
/* The socket goes back to the kernel: so do its registrations. */
void pno_epoll_revert(struct pno_sock *s);
/* The socket stays with the kernel: its registrations are forgotten. */
void pno_epoll_forget(struct pno_sock *s);
/* The socket's home has changed: instances that have it listen there, too. */
void pno_epoll_follow(struct pno_sock *s);
/* The last descriptor of an instance was closed. */
void pno_epoll_free(struct pno_epoll *ep);
/* Child of a fork: a socket's registrations come to life in its session. */
void pno_epoll_adopted(struct pno_sock *s);
/* Child of a fork: channels are to be opened anew. */
void pno_epoll_child(void);
/* True if epoll_wait would return something offloaded. */
bool pno_epoll_readable(struct pno_epoll *ep);
/* The same with the lock held. */
bool pno_epoll_any(struct pno_epoll *ep);
/* epoll_nest.c: an instance is added to another, taken out of it (or: it is
 * gone), has something ready, or not. */
void pno_epoll_nest(struct pno_epoll *ep, struct pno_epoll *inner);
void pno_epoll_unnest(struct pno_epoll *ep, const struct pno_epoll *inner, bool all);
void pno_epoll_ring(struct pno_epoll *ep);
void pno_epoll_beacon(struct pno_epoll *ep);
/* Before the kernel is asked: what it says of the instances within is true. */
void pno_epoll_settle(struct pno_epoll *ep);
/* The instance gets what an inner one sleeps on. */
void pno_epoll_hear_also(struct pno_epoll *ep, const struct pno_epoll *inner);
/* A poll of its descriptor sleeps, until false, on the instance's channels. */
void pno_epoll_attend(struct pno_epoll *ep, bool on);

static inline struct pno_epoll *pno_epoll_at(int fd)
{
	struct pno_obj *o = pno_fd_obj(fd);

	return likely(o && o->kind == PNO_KIND_EPOLL) ? (struct pno_epoll *)o : NULL;
}

int pno_epoll_wait(struct pno_epoll *ep, struct epoll_event *events, int max, int64_t timeout_ns,
		   const sigset_t *sigmask);
int pno_epoll_ctl(struct pno_epoll *ep, int op, int fd, struct epoll_event *event);
int pno_epoll_new(int fd);

#endif
