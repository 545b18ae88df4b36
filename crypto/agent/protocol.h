/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What the OpenSSL provider (pno.so) and the key agent say to each other.
 *
 * One SOCK_SEQPACKET connection a process on a Unix socket of mode 0600; the
 * agent also checks SO_PEERCRED. Fixed sizes, little endian, natural alignment
 * without holes. A packet holds one or more whole messages, each of a size
 * that is a multiple of 8, at most PNO_AGENT_PACKET bytes together: that is
 * how either side batches. A packet is written whole or (EAGAIN) not at all,
 * so threads may send on one connection without a lock.
 *
 *   request      answer
 *   HELLO        WELCOME, or REFUSED (the agent then closes); first, and once
 *   OP           RESULT with the same id, in any order
 *
 * The client chooses ids; an id may be used again after its RESULT. It keeps
 * at most WELCOME.max_inflight operations open: one more is answered
 * PNO_STATUS_OVERLOADED at once. The agent never blocks a client: it reads
 * whatever comes. A client that does not read its results until the agent's
 * socket buffer is full, for longer than a second, is closed.
 *
 * Every OP is answered, at the latest when its timeout is over. A client that
 * waits PNO_AGENT_GRACE_MS longer than its own timeout in vain closes.
 * An end of the connection answers every open operation: the agent is gone.
 * Connect again and send them again (a signature has no side effect), for as
 * long as the caller's patience lasts. Bytes that are not a message end the
 * connection.
 *
 * A connection belongs to the process that said HELLO. A child of fork makes
 * its own; it must neither read, write nor shut down the inherited one, only
 * close its copy.
 */
#ifndef PNO_AGENT_PROTOCOL_H
#define PNO_AGENT_PROTOCOL_H

#include <stddef.h>
#include <stdint.h>

#define PNO_AGENT_MAGIC   0x43304e50u /* "PN0C" */
#define PNO_AGENT_VERSION 1

/* The environment variable PNO_AGENT, or the provider's parameter "agent", says otherwise. */
#define PNO_AGENT_DEFAULT "/run/pno/agent.sock"

#define PNO_AGENT_PACKET   65536 /* bytes of a packet, at most */
#define PNO_AGENT_INPUT    2048  /* bytes of pno_op.data */
#define PNO_AGENT_OUTPUT   1024  /* bytes of pno_result.data */
#define PNO_AGENT_NAME     64
#define PNO_AGENT_TEXT     200
#define PNO_AGENT_GRACE_MS 1000

#define PNO_KEY_ID_LEN 32 /* SHA-256 of the SubjectPublicKeyInfo, DER */

enum {
	PNO_AGENT_HELLO = 1,
	PNO_AGENT_WELCOME = 2,
	PNO_AGENT_REFUSED = 3,
	PNO_AGENT_OP = 4,
	PNO_AGENT_RESULT = 5,
};

/* First in every message. size counts the whole message. */
struct pno_agent_msg {
	uint32_t magic;
	uint16_t version;
	uint16_t type;
	uint32_t size;
	uint32_t reserved; /* 0 */
	uint64_t id;       /* chosen by the client, returned in the answer */
};

struct pno_agent_hello {
	struct pno_agent_msg h;
	uint32_t pid;            /* as the client sees it, for the log: in a container another than that of SO_PEERCRED */
	uint32_t flags;          /* 0 */
	char name[PNO_AGENT_NAME]; /* of the program, for the agent's log, NUL padded */
};

struct pno_agent_welcome {
	struct pno_agent_msg h;
	uint32_t max_inflight; /* operations open at once on this connection */
	uint32_t max_timeout_us; /* a longer pno_op.timeout_us is cut to this; 0 means this */
};

struct pno_agent_refused {
	struct pno_agent_msg h;
	int32_t err; /* Linux errno */
	uint32_t reserved;
	char text[PNO_AGENT_TEXT]; /* why, for the log, NUL padded */
};

/* What pno_op.data holds. */
enum {
	/* The digest of what is signed, made with the hash of the scheme. Not with Ed25519. */
	PNO_INPUT_DIGEST = 1,
	/* What is signed, whole. Ed25519 only, which has no digest. */
	PNO_INPUT_MESSAGE = 2,
	/* The TLS 1.3 transcript hash that the server's CertificateVerify covers, 32 or 48
	 * bytes. The worker itself puts the 64 spaces and the context before it,
	 * and hashes. The only input that a key with PNO_KEY_TLS13_ONLY takes. */
	PNO_INPUT_TLS13_SERVER = 3,
	/* Likewise for a client's CertificateVerify. */
	PNO_INPUT_TLS13_CLIENT = 4,
	/* The RSA-encrypted premaster secret of a TLS 1.2 ClientKeyExchange; scheme
	 * is the version that the ClientHello offered, as 0x0303. The result is
	 * always 48 bytes, made up when the padding was wrong. Off unless the
	 * access rules say so for this client and key. */
	PNO_INPUT_TLS12_PREMASTER = 5,
};

/* TLS SignatureScheme code points (RFC 8446, 4.2.3) that are known. */
enum {
	PNO_RSA_PKCS1_SHA256 = 0x0401,
	PNO_RSA_PKCS1_SHA384 = 0x0501,
	PNO_RSA_PKCS1_SHA512 = 0x0601,
	PNO_ECDSA_P256_SHA256 = 0x0403, /* in TLS 1.2 the code names the hash alone: any curve */
	PNO_ECDSA_P384_SHA384 = 0x0503,
	PNO_ECDSA_P521_SHA512 = 0x0603,
	PNO_RSA_PSS_RSAE_SHA256 = 0x0804, /* salt as long as the digest */
	PNO_RSA_PSS_RSAE_SHA384 = 0x0805,
	PNO_RSA_PSS_RSAE_SHA512 = 0x0806,
	PNO_ED25519 = 0x0807,
};

/* Followed by len bytes of data, then zero bytes up to the next multiple of 8. */
struct pno_agent_op {
	struct pno_agent_msg h;
	uint8_t key_id[PNO_KEY_ID_LEN];
	uint32_t timeout_us; /* from now; 0: the agent's limit */
	uint16_t scheme;     /* PNO_RSA_… */
	uint16_t input;      /* PNO_INPUT_… */
	uint32_t len;        /* of data, 1 … PNO_AGENT_INPUT */
	uint32_t reserved;   /* 0 */
};

/* How an operation ended; the same numbers as in pno.crypto.v1. */
enum {
	PNO_STATUS_OK = 1,
	PNO_STATUS_UNKNOWN_KEY = 2,       /* no worker has this key */
	PNO_STATUS_DENIED = 3,            /* the access rules say no */
	PNO_STATUS_BAD_SCHEME = 4,        /* unknown, or not one for this type of key */
	PNO_STATUS_BAD_INPUT = 5,         /* wrong length or kind of input */
	PNO_STATUS_RATE_LIMITED = 6,
	PNO_STATUS_OVERLOADED = 7,        /* queues are full: try again later */
	PNO_STATUS_DEADLINE_EXCEEDED = 8,
	PNO_STATUS_UNAVAILABLE = 9,       /* no worker can be reached, and no fallback is allowed */
	PNO_STATUS_INTERNAL = 10,         /* a worker's engine failed */
};

/* Followed by len bytes of data (the signature, ECDSA in DER), then zero bytes up to the next multiple of 8. */
struct pno_agent_result {
	struct pno_agent_msg h;
	uint16_t status; /* PNO_STATUS_… */
	uint16_t len;    /* of data; 0 unless status is OK */
	uint32_t micros; /* that the agent took, for statistics */
};

/*
 * A reference to a key, as the contents of a PEM block of this label: what
 * nginx and HAProxy are given in place of a private key. It holds no secret.
 * cryptod keys export-public --pem writes it.
 */
#define PNO_KEY_PEM_LABEL "PNO PRIVATE KEY"
#define PNO_KEY_MAGIC     0x4b304e50u /* "PN0K" */
#define PNO_KEY_VERSION   1
#define PNO_KEY_SPKI      2048 /* bytes of SubjectPublicKeyInfo, at most */

enum {
	PNO_KEY_TLS13_ONLY = 1, /* takes PNO_INPUT_TLS13_… only */
};

/* Followed by spki_len bytes of SubjectPublicKeyInfo, DER, and nothing else. */
struct pno_key_ref {
	uint32_t magic;
	uint16_t version;
	uint16_t flags; /* PNO_KEY_… */
	uint8_t key_id[PNO_KEY_ID_LEN]; /* must be the SHA-256 of what follows */
	uint32_t spki_len;
	uint32_t reserved; /* 0 */
};

_Static_assert(sizeof(struct pno_agent_msg) == 24, "pno_agent_msg");
_Static_assert(sizeof(struct pno_agent_hello) == 96, "pno_agent_hello");
_Static_assert(sizeof(struct pno_agent_welcome) == 32, "pno_agent_welcome");
_Static_assert(sizeof(struct pno_agent_refused) == 232, "pno_agent_refused");
_Static_assert(sizeof(struct pno_agent_op) == 72, "pno_agent_op");
_Static_assert(sizeof(struct pno_agent_result) == 32, "pno_agent_result");
_Static_assert(sizeof(struct pno_key_ref) == 48, "pno_key_ref");

#endif
