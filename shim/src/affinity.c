/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The shard of a connection that the program makes.
 *
 * A proxy connects to a server because it has accepted a client. If both
 * connections are on one shard, one core of the DPU has what it takes to
 * serve the pair, and what is spliced between them does not cross to the host.
 * RSS has spread the clients over the shards, so the servers' connections are
 * spread likewise.
 *
 * Nothing tells which client a connect is for, so each thread remembers those
 * that it accepted and that may still get their server, and guesses: the oldest
 * that has sent something and has been read (a proxy of requests), or else the
 * oldest (a relay connects before it reads). One that was closed or answered
 * waits for no server; without this rule a single one that gets its answer from
 * the proxy itself would have every later guess be off by one. A wrong guess
 * costs what no guess costs. Without any, shards take turns.
 *
 * The caller holds the lock of the socket that connects, so those of the clients
 * are only tried: one that another thread uses just now stays as it is.
 */
#include "affinity.h"

#define MOST 32u

struct waiting {
	struct pno_sock *sock;
	uint32_t generation;
	uint8_t shard;
};

/* The oldest first. */
static __thread struct waiting clients[MOST] __attribute__((tls_model("initial-exec")));
static __thread unsigned nclients __attribute__((tls_model("initial-exec")));

static void forget(unsigned i)
{
	nclients--;
	for (; i < nclients; i++)
		clients[i] = clients[i + 1];
}

void pno_affinity_accepted(struct pno_sock *c)
{
	if (c->ses->shards == 1)
		return;
	if (nclients == MOST)
		forget(0);
	clients[nclients++] = (struct waiting){ c, c->generation, c->shard };
}

enum standing { GONE, SILENT, ASKED };

static enum standing standing(const struct waiting *w)
{
	enum standing st;

	if (w->sock->generation != w->generation)
		return GONE;
	if (!pno_trylock_inner(&w->sock->lock))
		return SILENT;
	if (w->sock->generation != w->generation || w->sock->tx_sent)
		st = GONE;
	else
		st = w->sock->rx_read ? ASKED : SILENT;
	pno_unlock_inner(&w->sock->lock);
	return st;
}

/* Drops who does not wait any more; the index of the one to serve, or MOST. */
static unsigned next_client(void)
{
	unsigned n = 0, asker = MOST;

	for (unsigned i = 0; i < nclients; i++) {
		enum standing st = standing(&clients[i]);

		if (st == GONE)
			continue;
		if (st == ASKED && asker == MOST)
			asker = n;
		clients[n++] = clients[i];
	}
	nclients = n;
	return asker < MOST || !n ? asker : 0;
}

unsigned pno_affinity_shard(const struct pno_session *ses)
{
	static atomic_uint turn;
	unsigned i = ses->shards > 1 ? next_client() : MOST, shard;

	if (i < MOST) {
		shard = clients[i].shard;
		forget(i);
		if (shard < ses->shards) /* of this session, or of one like it */
			return shard;
	}
	return atomic_fetch_add_explicit(&turn, 1, memory_order_relaxed) % ses->shards;
}
