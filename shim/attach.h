/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What the shim and hostd say to each other: docs/protocol.md, section 8.
 *
 * One SOCK_SEQPACKET connection a process, one message a packet, fixed sizes,
 * little endian, natural alignment without holes (asserted below). The shim
 * asks; hostd never speaks unasked. Every request is answered by one message
 * with the same id, except PNO_MSG_FORKED, which is not answered: the child of
 * a fork sends it on the connection it inherited, and then closes its copy, so
 * two processes may write to one connection (a packet is never torn), but only
 * its owner reads from it. The parent says the same when fork returns.
 *
 *   request                      answer
 *   HELLO                        WELCOME + fds, or REFUSED (hostd then closes)
 *   CHANNEL_OPEN                 CHANNEL + fd, or REFUSED
 *   REGISTER_SOCKET + fd (2)     ACK
 *   UNREGISTER_SOCKET            ACK
 *   LOOKUP_SOCKET + fd           SOCKET, or REFUSED (ENOENT: not one of ours)
 *   READY                        ACK
 *   FORKED                       none
 *   BYPASS, instead of HELLO     ACK (EALREADY: hostd knows this program)
 *
 * Whose life: hostd closes the session when its process (SO_PEERCRED of the
 * HELLO) is gone. A connection that ends while its process lives means that
 * the process called exec: hostd keeps the session until the new image says
 * READY on a connection of the same pid (it has then looked up every socket it
 * inherited), or the pid is gone, or 10 seconds have passed, whichever is
 * first. READY is sent once, after the last LOOKUP_SOCKET of start-up.
 *
 * Forks: FORKED{token, pid} names the child that holds the handles granted
 * under this token (OpFork on every shard). hostd watches that pid; when it is
 * gone without having attached, hostd drops the grant. A HELLO with the token
 * adopts it, whether it comes before FORKED or after. A HELLO without a token,
 * from a pid that has a grant pending (the child called exec before it needed
 * us), leaves the grant as the session of "the old image" above. FORKED with
 * pid 0, or no FORKED and no HELLO within 5 seconds: fork failed, drop it.
 *
 * hostd restarts: the shim notices at its next request, connects again and
 * says HELLO with its session id and, as descriptors, the session memory and
 * the interrupt eventfds of its open channels in order of their number. The
 * WELCOME then carries no descriptors.
 *
 * Registered sockets: cookies can be guessed, so the socket itself comes with
 * REGISTER_SOCKET and LOOKUP_SOCKET as proof. A connection may be passed on and
 * closed at once: the DPU keeps it under a token (OpShared) for as long as hostd
 * sees that its placeholder is open somewhere. Of other sockets, a row names the holders of one kernel socket by its
 * SO_COOKIE, which is the same in every process that has the file. When a
 * session adopts a fork grant, hostd copies the rows of the parent to it
 * (handles are the same numbers). LOOKUP_SOCKET takes any living holder, also
 * one that is only kept for exec, and lets dpud transfer the handles.
 */
#ifndef PNO_ATTACH_H
#define PNO_ATTACH_H

#include <stddef.h>
#include <stdint.h>

#include "abi.h"

#define PNO_ATTACH_MAGIC   0x41304e50u /* "PN0A" */
#define PNO_ATTACH_VERSION 1

#define PNO_ATTACH_DEFAULT "/run/pno/hostd.sock"

#define PNO_MAX_RULES 128
#define PNO_NAME_LEN  64
#define PNO_TEXT_LEN  232
#define PNO_TOKEN_LEN 16
#define PNO_POLICY_LEN 256

enum {
	PNO_MSG_HELLO = 1,
	PNO_MSG_WELCOME = 2,
	PNO_MSG_REFUSED = 3,
	PNO_MSG_CHANNEL_OPEN = 4,
	PNO_MSG_CHANNEL = 5,
	PNO_MSG_FORKED = 6,
	PNO_MSG_REGISTER_SOCKET = 7,
	PNO_MSG_UNREGISTER_SOCKET = 8,
	PNO_MSG_LOOKUP_SOCKET = 9,
	PNO_MSG_SOCKET = 10,
	PNO_MSG_READY = 11,
	PNO_MSG_ACK = 12,
	PNO_MSG_BYPASS = 13,
};

/* First in every message. size counts the whole message. */
struct pno_msg {
	uint32_t magic;
	uint16_t version;
	uint16_t type;
	uint32_t size;
	uint32_t id; /* chosen by the asking side, returned in the answer */
};

enum {
	PNO_HELLO_TOKEN = 1, /* token is valid: adopt the handles of a fork */
	PNO_HELLO_PROBE = 2, /* no session: ACK if one would be given, else REFUSED */
};

struct pno_msg_hello {
	struct pno_msg h;
	uint16_t abi_major;
	uint16_t abi_minor;
	uint32_t flags; /* PNO_HELLO_… */
	uint64_t features;
	uint64_t session; /* 0: a new one; else re-adopt this, fds as below */
	uint8_t token[PNO_TOKEN_LEN];
	char name[PNO_NAME_LEN];     /* of the program, NUL padded */
	char policy[PNO_POLICY_LEN]; /* PNO_POLICY_FILE: absolute path or empty */
};

/* What a rule, or the default, decides. */
enum {
	PNO_ACTION_OFFLOAD = 1,
	PNO_ACTION_KERNEL = 2,
	PNO_ACTION_REFUSE = 3, /* bind and connect fail with EACCES */
};

enum {
	PNO_RULE_LISTEN = 1,  /* matched against the local address, at bind */
	PNO_RULE_CONNECT = 2, /* matched against the peer, at connect */
};

/* A rule of the policy; the first that matches decides. */
struct pno_rule {
	uint8_t action;
	uint8_t ops;    /* PNO_RULE_… mask */
	uint8_t family; /* 4, 6, or 0 for both (prefix must then be 0) */
	uint8_t proto;  /* PNO_PROTO_TCP, PNO_PROTO_UDP, or 0 for both */
	uint8_t prefix; /* bits of addr that count */
	uint8_t reserved0;
	uint16_t port_lo; /* inclusive; 0 … 65535 for every port */
	uint16_t port_hi;
	uint16_t reserved1;
	uint32_t id; /* line in the policy file, for explanations */
	uint8_t addr[16];
};

/*
 * Descriptors that come with it, in this order: session memory, one doorbell
 * eventfd a shard, the interrupt eventfd of channel 0. The shim takes the
 * geometry from here, never from the session memory.
 */
struct pno_msg_welcome {
	struct pno_msg h;
	uint64_t session;
	uint64_t total_size;
	uint64_t channel_stride;
	uint64_t features;
	uint32_t h2d_size;
	uint32_t d2h_size;
	uint32_t channels;
	uint32_t shards;
	uint32_t rx_window;
	uint32_t tx_window;
	uint32_t spin_nanos;
	uint16_t abi_minor; /* the lower of both */
	uint8_t default_action;
	uint8_t reserved0;
	uint32_t nrules;
	uint32_t reserved1;
	struct pno_rule rules[PNO_MAX_RULES];
};

struct pno_msg_refused {
	struct pno_msg h;
	int32_t err;            /* Linux errno */
	uint8_t fallback;       /* of HELLO: PNO_ACTION_KERNEL or PNO_ACTION_REFUSE */
	uint8_t reserved[3];
	char text[PNO_TEXT_LEN]; /* why, for the log, NUL padded */
};

struct pno_msg_channel_open {
	struct pno_msg h;
	uint32_t channel; /* 1 … channels-1; 0 came with WELCOME */
	uint32_t reserved;
};

/* With the interrupt eventfd of the channel. */
struct pno_msg_channel {
	struct pno_msg h;
	uint32_t channel;
	uint32_t reserved;
};

struct pno_msg_forked {
	struct pno_msg h;
	uint8_t token[PNO_TOKEN_LEN];
	int32_t pid; /* 0: fork failed */
	uint32_t reserved;
};

enum {
	PNO_SOCK_LISTENER = 1,
	PNO_SOCK_CONN = 2,
	PNO_SOCK_BOUND = 3, /* and not listening */
};

/*
 * A socket that may reach another process by SCM_RIGHTS or exec. The placeholder
 * of a connection is one end of a Unix socket pair from then on, and hostd gets
 * both: it keeps the other end, which hangs up when no process has the first.
 */
struct pno_msg_register_socket {
	struct pno_msg h;
	uint64_t cookie; /* SO_COOKIE of the kernel socket */
	uint32_t kind;   /* PNO_SOCK_… */
	uint32_t proto;
	uint32_t shard;   /* of a connection; a listener is on all */
	uint32_t backlog; /* of a listener */
	struct pno_addr local;
	struct pno_addr peer;
	uint32_t handle[PNO_MAX_SHARDS]; /* 0: not on this shard */
	uint32_t domain; /* of a connection: AF_INET or AF_INET6 */
	uint32_t reserved;
	uint8_t token[PNO_TOKEN_LEN]; /* what the DPU keeps it under: a connection, or a listener in a message */
};

struct pno_msg_unregister_socket {
	struct pno_msg h;
	uint64_t cookie; /* the last descriptor in this process was closed */
};

struct pno_msg_lookup_socket {
	struct pno_msg h;
	uint64_t cookie;
};

/* Handles are the asking session's own. */
struct pno_msg_socket {
	struct pno_msg h;
	uint64_t cookie;
	uint32_t kind;
	uint32_t proto;
	uint32_t shard;
	uint32_t backlog;
	struct pno_addr local;
	struct pno_addr peer;
	uint32_t handle[PNO_MAX_SHARDS];
	uint32_t domain;
	uint32_t reserved;
};

enum {
	PNO_BYPASS_STATIC = 1,
	PNO_BYPASS_PRIVILEGED = 2,
	PNO_BYPASS_MACHINE = 3,
};

/* The process is about to become a program that the shim will not be in. */
struct pno_msg_bypass {
	struct pno_msg h;
	uint32_t reason; /* PNO_BYPASS_… */
	uint32_t reserved;
	char program[PNO_POLICY_LEN]; /* its path, NUL padded, cut if need be */
};

struct pno_msg_ready {
	struct pno_msg h;
};

struct pno_msg_ack {
	struct pno_msg h;
	int32_t err; /* 0 or a Linux errno */
	uint32_t reserved;
};

_Static_assert(sizeof(struct pno_msg) == 16, "pno_msg");
_Static_assert(sizeof(struct pno_msg_hello) == 376, "pno_msg_hello");
_Static_assert(sizeof(struct pno_rule) == 32, "pno_rule");
_Static_assert(offsetof(struct pno_rule, addr) == 16, "pno_rule.addr");
_Static_assert(offsetof(struct pno_msg_welcome, h2d_size) == 48, "pno_msg_welcome.h2d_size");
_Static_assert(offsetof(struct pno_msg_welcome, rules) == 88, "pno_msg_welcome.rules");
_Static_assert(sizeof(struct pno_msg_welcome) == 88 + PNO_MAX_RULES * 32, "pno_msg_welcome");
_Static_assert(sizeof(struct pno_msg_refused) == 256, "pno_msg_refused");
_Static_assert(sizeof(struct pno_msg_channel_open) == 24, "pno_msg_channel_open");
_Static_assert(sizeof(struct pno_msg_channel) == 24, "pno_msg_channel");
_Static_assert(sizeof(struct pno_msg_forked) == 40, "pno_msg_forked");
_Static_assert(sizeof(struct pno_msg_register_socket) == 176, "pno_msg_register_socket");
_Static_assert(sizeof(struct pno_msg_unregister_socket) == 24, "pno_msg_unregister_socket");
_Static_assert(sizeof(struct pno_msg_lookup_socket) == 24, "pno_msg_lookup_socket");
_Static_assert(sizeof(struct pno_msg_socket) == 160, "pno_msg_socket");
_Static_assert(sizeof(struct pno_msg_bypass) == 280, "pno_msg_bypass");
_Static_assert(sizeof(struct pno_msg_ready) == 16, "pno_msg_ready");
_Static_assert(sizeof(struct pno_msg_ack) == 24, "pno_msg_ack");

#endif
