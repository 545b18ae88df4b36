/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The way to the key agent. agent.c has the operations, link.c the thread and
 * the connection, wait.c how a caller waits.
 */
#ifndef PNO_AGENT_H
#define PNO_AGENT_H

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/queue.h>
#include <sys/un.h>

#include "wire.h"

/* How a call ended, besides PNO_STATUS_…: */
enum {
	PNO_CALL_PENDING = 0,
	PNO_CALL_GONE = -1,    /* the agent could not be reached */
	PNO_CALL_TIMEOUT = -2, /* it was, and did not answer in time */
	PNO_CALL_BROKEN = -3,  /* nothing could be tried: memory, threads */
};

struct pno_answer {
	int status; /* PNO_STATUS_… or PNO_CALL_… */
	size_t len;
	uint8_t data[PNO_AGENT_OUTPUT];
	char text[PNO_AGENT_TEXT + 1]; /* more about a failure, or "" */
};

/* What an async job waits for, one an SSL connection: lives in its ASYNC_WAIT_CTX. */
struct pno_wait {
	struct pno_agent *agent;
	struct pno_call *call; /* the one that is waited for: the connection's */
	int fd;                /* an eventfd; -1 when the ASYNC_WAIT_CTX is gone; under the agent's lock */
	bool pauses;           /* a job was left here: pausing is not blocked */
};

/* One operation. Counted: the caller holds one reference, the agent's lists another.
 * The lock guards it while its status is PENDING; after that nothing changes. */
struct pno_call {
	TAILQ_ENTRY(pno_call) at; /* in the list that it is in: agent's queued or sent */
	atomic_uint refs;
	bool sent;
	uint32_t slot;           /* while sent */
	uint64_t started;        /* CLOCK_MONOTONIC, ns */
	uint64_t deadline;       /* likewise */
	struct pno_wait *wait;   /* or NULL: done is posted */
	sem_t done;
	atomic_int status;       /* what is below is valid when this is not PENDING */
	uint16_t len;
	char text[PNO_AGENT_TEXT + 1];
	uint8_t out[PNO_AGENT_OUTPUT];
	size_t msg_len;
	uint8_t msg[PNO_OP_MAX];
};

TAILQ_HEAD(pno_calls, pno_call);

/* A place in the table of sent calls. An id on the wire is the slot and its use. */
struct pno_slot {
	struct pno_call *call; /* NULL: free */
	uint32_t use;
	uint32_t next_free;
};

/* One agent, as one provider instance sees it. */
struct pno_agent {
	struct sockaddr_un addr;
	uint64_t patience;   /* ns */

	pthread_mutex_t lock; /* guards all that follows; a leaf */
	unsigned refs;        /* the provider's, and one a pno_wait */
	struct pno_agent *next; /* in the list of all; under its lock */

	bool running;     /* the thread is, in this process */
	bool stop;
	pthread_t thread;
	sem_t apart;      /* posted by the thread when chroot does not reach it any more */
	int wake;         /* eventfd: the thread should look again */
	bool dozing;      /* it sleeps without a time limit */

	int fd;           /* the connection, or -1; only the thread opens and closes it */
	bool broken;      /* sending failed: the thread shall close it */
	bool full;        /* the socket's buffer is: wait for POLLOUT */
	uint32_t max_inflight, max_timeout_us;
	uint64_t gone_since; /* when the agent was lost or first not found; 0: it is there */
	uint64_t retry_at;
	uint64_t tried;      /* when the last attempt to connect that is over began */
	uint64_t looked;     /* at deadlines, last */
	uint32_t backoff_ms;
	char why[PNO_AGENT_TEXT + 1]; /* what went wrong last */

	struct pno_calls queued, sent;
	uint32_t inflight;
	struct pno_slot *slots;
	uint32_t nslots, free_slot;

	uint8_t *packet; /* the thread's */
};

/* agent.c */
struct pno_agent *pno_agent_new(const char *path, unsigned patience_ms);
void pno_agent_begin(struct pno_agent *a);
void pno_agent_free(struct pno_agent *a);
void pno_agent_unref_locked(struct pno_agent *a); /* unlocks */
struct pno_call *pno_call_new(const struct pno_request *r);
void pno_call_start(struct pno_agent *a, struct pno_call *c);
void pno_call_complete(struct pno_call *c, int status, const char *text); /* locked */
void pno_call_unref(struct pno_call *c);
void pno_agent_here(struct pno_agent *a);
void pno_agent_requeue(struct pno_agent *a);
void pno_agent_flush(struct pno_agent *a);
bool pno_agent_result(struct pno_agent *a, const struct pno_message *m);
bool pno_agent_expire(struct pno_agent *a, uint64_t now);
void pno_agent_wake(struct pno_agent *a);
uint64_t pno_now(void);

/* link.c */
bool pno_link_start(struct pno_agent *a); /* locked */

/* wait.c */
void pno_agent_call(struct pno_agent *a, const struct pno_request *r, struct pno_answer *out);

#define PNO_MS 1000000ull

#endif
