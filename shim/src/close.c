/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The end of descriptors and of sockets.
 *
 * Close is the last record of a socket. It carries CloseReset when the program
 * leaves received bytes unread or asked for it by SO_LINGER with 0, as the
 * kernel answers such a close with RST.
 *
 * The child of a fork that has not needed the DPU yet has no session to send
 * Close in. What it closes before is kept as an orphan and closed when it
 * attaches, at hostd too: it may get the same socket again in a message, and
 * needs a new share of it then. If it never attaches, hostd drops everything at
 * its end.
 */
#include <stdlib.h>
#include <string.h>

#include "epoll.h"
#include "hostd.h"
#include "listener.h"
#include "log.h"
#include "sock.h"
#include "stats.h"
#include "udp.h"

struct orphan {
	uint64_t cookie; /* registered with hostd; 0: not */
	uint32_t handle, sent, read;
	uint8_t shard;
};

static struct orphan *orphans;
static size_t norphans;
static pno_lock_t orphan_lock; /* a leaf */

static void add_orphan(struct orphan o)
{
	struct orphan *more;

	if (!o.handle)
		return;
	pno_lock(&orphan_lock);
	more = realloc(orphans, (norphans + 1) * sizeof *more);
	if (more) {
		orphans = more;
		orphans[norphans++] = o;
	}
	pno_unlock(&orphan_lock);
}

static void unregister(struct pno_session *ses, uint64_t cookie)
{
	struct pno_msg_unregister_socket m = { .cookie = cookie };
	struct pno_msg_ack ack;

	pno_hostd_ask(ses, &m, PNO_MSG_UNREGISTER_SOCKET, sizeof m, -1, &ack, PNO_MSG_ACK, sizeof ack, NULL);
}

void pno_sock_close_orphans(struct pno_session *ses)
{
	struct pno_sock nobody = { .ses = ses };
	struct orphan *all;
	size_t n;

	pno_lock(&orphan_lock);
	all = orphans;
	n = norphans;
	orphans = NULL;
	norphans = 0;
	pno_unlock(&orphan_lock);
	for (size_t i = 0; i < n; i++) {
		if (all[i].shard < ses->shards)
			pno_sock_record(&nobody, &ses->chan[0]->qp[all[i].shard], (struct pno_record){
				.op = PNO_OP_CLOSE, .sock = all[i].handle, .seq = all[i].sent, .ack = all[i].read }, NULL);
		if (all[i].cookie)
			unregister(ses, all[i].cookie);
	}
	free(all);
}

static void close_connection(struct pno_sock *s)
{
	/* Who closes a shared one last, and what it has unread, the DPU knows. */
	bool reset = !s->shared && (s->linger_reset || pno_sock_unread(s));
	struct pno_record r = {
		.op = PNO_OP_CLOSE, .sock = s->handle,
		.seq = s->rebound ? 0 : s->tx_sent, .ack = s->rebound ? 0 : s->rx_read, /* its streams were another's */
		.flags = (reset && s->state == PNO_OPEN ? PNO_FLAG_CLOSE_RESET : 0) |
			 (s->stranger ? PNO_FLAG_CLOSE_AWAY : 0),
	};

	pno_sock_record(s, s->qp, r, NULL);
	if (s->bound && s->shard)
		pno_sock_record(s, &s->qp->chan->qp[0], (struct pno_record){
			.op = PNO_OP_CLOSE, .sock = s->handle }, NULL);
	pno_handle_drop(s->ses, s->shard, s->handle);
}

/* What hostd knows it by, other than a connection. */
static uint64_t registered(const struct pno_sock *s)
{
	return s->listener ? s->listener->cookie : s->pair ? 0 : s->cookie;
}

void pno_sock_orphan(struct pno_sock *s)
{
	struct orphan o = { .handle = s->handle, .shard = s->shard, .sent = s->tx_sent, .read = s->rx_read,
			    .cookie = registered(s) };

	if (s->udp) {
		for (o.shard = 0; o.shard < s->udp->legs; o.shard++, o.cookie = 0) {
			const struct pno_leg *l = &s->udp->leg[o.shard];

			o.handle = l->handle;
			o.sent = l->tx_sent;
			o.read = l->rx_read;
			add_orphan(o);
		}
		return;
	}
	if (s->state != PNO_LISTENING) {
		add_orphan(o);
		return;
	}
	for (o.shard = 0; o.shard < PNO_MAX_SHARDS; o.shard++, o.cookie = 0) {
		o.handle = s->listener->handle[o.shard];
		add_orphan(o);
	}
}

void pno_sock_release(struct pno_sock *s)
{
	bool lost = s->ses && atomic_load_explicit(&s->ses->lost, memory_order_relaxed);

	if (!pno_sock_offloaded(s) || (s->state == PNO_DEAD && !s->handle))
		return;
	if (!s->ses)
		pno_sock_orphan(s);
	if (s->udp)
		pno_udp_release(s);
	else if (s->state == PNO_LISTENING)
		pno_listener_close(s);
	else if (s->ses && !lost && s->handle)
		close_connection(s);
	s->handle = 0;
	pno_count(sockets_closed);
}

void pno_sock_close_fd(struct pno_sock *s, int fd)
{
	struct pno_session *ses = s->ses;
	uint64_t cookie;

	pno_fd_set(fd, NULL);
	if (--s->nfds > 0) {
		pno_sock_unlock(s);
		return;
	}
	while (s->items)
		pno_epoll_remove(s->items);
	cookie = registered(s);
	pno_sock_release(s);
	pno_sock_unlock(s);
	pno_sock_free(s);
	if (cookie && ses && pno_session_now() == ses)
		unregister(ses, cookie);
}

void pno_sock_to_kernel(struct pno_sock *s, int first)
{
	pno_epoll_forget(s);
	pno_fd_set(first, NULL);
	s->nfds--;
	for (unsigned fd = 0; s->nfds > 0 && fd < atomic_load(&pno_fd_top); fd++) {
		if (pno_fd_obj(fd) == (struct pno_obj *)s) {
			pno_fd_set(fd, NULL);
			s->nfds--;
		}
	}
	pno_sock_unlock(s);
	pno_sock_free(s);
}

void pno_close_child_locks(void)
{
	atomic_store(&orphan_lock.held, 0);
}
