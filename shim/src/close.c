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
 * attaches; if it never does, hostd drops everything at its end.
 */
#include <stdlib.h>
#include <string.h>

#include "epoll.h"
#include "hostd.h"
#include "log.h"
#include "sock.h"
#include "stats.h"
#include "udp.h"

struct orphan {
	uint32_t handle, sent, read;
	uint8_t shard;
};

static struct orphan *orphans;
static size_t norphans;
static pno_lock_t orphan_lock; /* a leaf */

static void add_orphan(uint32_t handle, unsigned shard, uint32_t sent, uint32_t read)
{
	struct orphan *more;

	if (!handle)
		return;
	pno_lock(&orphan_lock);
	more = realloc(orphans, (norphans + 1) * sizeof *more);
	if (more) {
		orphans = more;
		orphans[norphans++] = (struct orphan){ handle, sent, read, shard };
	}
	pno_unlock(&orphan_lock);
}

void pno_sock_close_orphans(struct pno_session *ses)
{
	struct pno_sock nobody = { .ses = ses };

	pno_lock(&orphan_lock);
	for (size_t i = 0; i < norphans; i++)
		if (orphans[i].shard < ses->shards)
			pno_sock_record(&nobody, &ses->chan[0]->qp[orphans[i].shard], (struct pno_record){
				.op = PNO_OP_CLOSE, .sock = orphans[i].handle,
				.seq = orphans[i].sent, .ack = orphans[i].read }, NULL);
	free(orphans);
	orphans = NULL;
	norphans = 0;
	pno_unlock(&orphan_lock);
}

static void close_connection(struct pno_sock *s)
{
	/* Who closes a shared one last, and what it has unread, the DPU knows. */
	bool reset = !s->shared && (s->linger_reset || pno_sock_unread(s));
	struct pno_record r = {
		.op = PNO_OP_CLOSE, .sock = s->handle, .seq = s->tx_sent, .ack = s->rx_read,
		.flags = (reset && s->state == PNO_OPEN ? PNO_FLAG_CLOSE_RESET : 0) |
			 (s->stranger ? PNO_FLAG_CLOSE_AWAY : 0),
	};

	pno_sock_record(s, s->qp, r, NULL);
	if (s->bound && s->shard)
		pno_sock_record(s, &s->qp->chan->qp[0], (struct pno_record){
			.op = PNO_OP_CLOSE, .sock = s->handle }, NULL);
	pno_handle_drop(s->ses, s->shard, s->handle);
}

static void orphan(struct pno_sock *s)
{
	if (s->udp) {
		for (unsigned i = 0; i < s->udp->legs; i++)
			add_orphan(s->udp->leg[i].handle, i, s->udp->leg[i].tx_sent, s->udp->leg[i].rx_read);
		return;
	}
	if (s->state != PNO_LISTENING) {
		add_orphan(s->handle, s->shard, s->tx_sent, s->rx_read);
		return;
	}
	for (unsigned i = 0; i < PNO_MAX_SHARDS; i++)
		add_orphan(s->listener->handle[i], i, 0, 0);
}

void pno_sock_release(struct pno_sock *s)
{
	bool lost = s->ses && atomic_load_explicit(&s->ses->lost, memory_order_relaxed);

	if (!pno_sock_offloaded(s) || (s->state == PNO_DEAD && !s->handle))
		return;
	if (!s->ses)
		orphan(s);
	if (s->udp)
		pno_udp_release(s);
	else if (s->state == PNO_LISTENING)
		pno_listener_close(s);
	else if (s->ses && !lost && s->handle)
		close_connection(s);
	s->handle = 0;
	pno_count(sockets_closed);
}

static void unregister(struct pno_session *ses, uint64_t cookie)
{
	struct pno_msg_unregister_socket m = { .cookie = cookie };
	struct pno_msg_ack ack;

	pno_hostd_ask(ses, &m, PNO_MSG_UNREGISTER_SOCKET, sizeof m, -1, &ack, PNO_MSG_ACK, sizeof ack, NULL);
}

void pno_sock_close_fd(struct pno_sock *s, int fd)
{
	struct pno_session *ses = s->ses;
	uint64_t cookie = 0;

	pno_fd_set(fd, NULL);
	if (--s->nfds > 0) {
		pno_sock_unlock(s);
		return;
	}
	while (s->items)
		pno_epoll_remove(s->items);
	if (s->listener)
		cookie = s->listener->cookie;
	else if (!s->pair)
		cookie = s->cookie;
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

void pno_sock_orphan(struct pno_sock *s)
{
	add_orphan(s->handle, s->shard, s->tx_sent, s->rx_read);
}

void pno_close_child_locks(void)
{
	atomic_store(&orphan_lock.held, 0);
}
