/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A datagram socket: the part of struct pno_sock that UDP has besides.
 *
 * On the DPU it exists on every shard, under one handle, because its datagrams
 * come wherever the hash of their addresses says. Each shard is a leg with
 * offsets and windows of its own; what they bring goes on one list, the
 * socket's rx_head, in the order in which it was drained: a segment is a frame,
 * a struct pno_dgram and its data.
 *
 * Whose it is: socket() leaves it to the kernel (PNO_FRESH). The first of bind,
 * connect and a send with an address decides by the policy, for good; but a
 * socket that has exchanged nothing yet follows its first destination back to
 * the kernel. On the DPU its state is PNO_DGRAM.
 *
 * All is guarded by the socket's lock.
 */
#ifndef PNO_UDP_H
#define PNO_UDP_H

#include "sock.h"

/* Control messages that the program wants with what it receives. */
enum {
	PNO_WANT_PKTINFO = 1,
	PNO_WANT_TOS = 2,
	PNO_WANT_TTL = 4,
	PNO_WANT_PKTINFO6 = 8,
	PNO_WANT_TCLASS = 16,
	PNO_WANT_HOPLIMIT = 32,
};

/* The socket on one shard. */
struct pno_leg {
	uint32_t handle; /* the same on all, unless the socket came from elsewhere */
	uint64_t tx_sent, tx_acked;
	uint64_t rx_next; /* end of what has come */
	uint64_t rx_read; /* bytes that the program has consumed */
	uint64_t rx_told; /* consumption last reported */
	uint64_t former;  /* channels it was claimed away from, until Claimed */
	struct pno_seg *part; /* a datagram of several records, so far */
	uint32_t part_have;
	bool away, claiming;
	bool stranger; /* from another process: Claimed tells where its streams stand */
};

struct pno_udp {
	unsigned legs;     /* shards that have it; 0: not on the DPU */
	bool chosen;       /* bound by connect or send, not by bind */
	bool loose;        /* nobody asked for its address or port */
	bool used;         /* has sent or received */
	bool asking;       /* a thread is at bind or connect */
	bool lost;         /* the DPU is gone; to be opened again */
	bool doubt;        /* the peer is on the loopback: nobody may listen there */
	bool only_v6;      /* says IPV6_V6ONLY, or its address */
	bool df;           /* do not fragment: too long is EMSGSIZE here */
	uint32_t mtu;
	uint32_t want;     /* PNO_WANT_… */
	uint16_t segment;  /* UDP_SEGMENT */
	uint64_t set[2];   /* options that the DPU has to know, by position */
	uint64_t need;     /* window that a send waits for */
	struct pno_addr bad;  /* a destination that the DPU could not send to, */
	int bad_err;          /* and why; 0: none */
	struct pno_addr src;  /* source address last found to be the DPU's */
	struct pno_addr fine; /* destination last found to be the DPU's */
	struct pno_cork *cork; /* a datagram under MSG_MORE, so far */
	struct pno_leg leg[PNO_MAX_SHARDS];
};

/* Bytes of a frame. */
#define PNO_FRAME(len) (sizeof(struct pno_dgram) + (len))

static inline struct pno_qp *pno_udp_qp(const struct pno_sock *s, unsigned leg)
{
	return &s->qp->chan->qp[leg];
}

/* socket() made a datagram socket. False: no memory. */
bool pno_udp_new(struct pno_sock *s);
void pno_udp_free(struct pno_sock *s);

/* Locked on entry, unlocked on return: 0 or an errno. */
int pno_udp_bind(struct pno_sock *s, int fd, struct pno_session *ses, const struct sockaddr *sa, socklen_t len);
int pno_udp_connect(struct pno_sock *s, int fd, struct pno_session *ses, const struct sockaddr *sa, socklen_t len);
/* Locked throughout. */
int pno_udp_shutdown(struct pno_sock *s, int how);

enum pno_way { PNO_WAY_DPU, PNO_WAY_KERNEL, PNO_WAY_ERROR };
/*
 * Where a datagram to an address goes, deciding about a fresh socket. Locked on
 * entry and return, with *err set for PNO_WAY_ERROR; unlocked, and the socket
 * the kernel's for good, after PNO_WAY_KERNEL.
 */
enum pno_way pno_udp_way(struct pno_sock *s, int fd, const struct pno_addr *to, int *err);

/* Locked on entry, unlocked on return: bytes or -errno. */
ssize_t pno_udp_recv(struct pno_sock *s, int fd, struct msghdr *m, int flags);
ssize_t pno_udp_send(struct pno_sock *s, int fd, const struct msghdr *m, int flags);

/* udp_legs.c; locked, but not meanwhile: 0 or an errno. A new socket on every
 * shard, bound, and connected if there is a peer; another peer, or none. */
int pno_udp_open(struct pno_sock *s, int fd, struct pno_session *ses, struct pno_addr local,
		 const struct pno_addr *peer);
int pno_udp_aim(struct pno_sock *s, const struct pno_addr *peer);

/* udp_cork.c; locked throughout. What is corked already: its length, header and
 * destination. */
size_t pno_udp_corked(const struct pno_sock *s, struct pno_dgram *h, struct pno_addr *to);
/* Adds to it, or begins it: 0 or an errno. */
int pno_udp_cork(struct pno_sock *s, const struct pno_dgram *h, const struct pno_addr *to, const struct msghdr *m);
/* Takes it off the socket, to be sent, and freed by the caller. */
struct pno_cork *pno_udp_cork_take(struct pno_sock *s, struct iovec *whole);
void pno_udp_cork_drop(struct pno_sock *s);

/* Locked throughout. */
uint32_t pno_udp_mask(const struct pno_sock *s);
uint64_t pno_udp_unread(const struct pno_sock *s); /* FIONREAD */
uint64_t pno_udp_unsent(const struct pno_sock *s); /* SIOCOUTQ */
void pno_udp_release(struct pno_sock *s);
void pno_udp_claim(struct pno_sock *s, struct pno_chan *c);
void pno_udp_ack(struct pno_sock *s, unsigned leg, bool now);

/* Records from the DPU; what is wrong with them. */
const char *pno_udp_dgram(struct pno_sock *s, struct pno_qp *q, const struct pno_record *r,
			  const uint8_t *payload, uint64_t start);
const char *pno_udp_record(struct pno_sock *s, struct pno_qp *q, const struct pno_record *r, const uint8_t *payload,
			   struct pno_drain *d);

/* The session is over: the socket is opened again in the next one, under its
 * names. What was under way is lost, as datagrams are. */
void pno_udp_lose(struct pno_sock *s);
/* Unlocked meanwhile: 0 once the socket is there, or an errno. */
int pno_udp_revive(struct pno_sock *s, int fd);

/* Another process's socket, with handles of our own. */
bool pno_udp_inherit(struct pno_sock *s, const struct pno_msg_socket *m);

/* Fork, in the child: before it has a session, and then. */
void pno_udp_child(struct pno_sock *s);
void pno_udp_adopted(struct pno_sock *s);

/* udp_options.c: 0, an errno, or -1: ask the placeholder. */
int pno_udp_setopt(struct pno_sock *s, int fd, int level, int name, const void *val, socklen_t len);
int pno_udp_getopt(struct pno_sock *s, int level, int name, void *val, socklen_t *len);
/* What was set by another process: the placeholder knows. */
void pno_udp_recall(struct pno_sock *s, int fd);
/* Tells the DPU what was set before it had the socket. */
void pno_udp_send_opts(struct pno_sock *s, int fd);

#endif
