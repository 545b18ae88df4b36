/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What a socket tells the DPU: single records, consumption, claims.
 *
 * A record other than data has to get through. The ring keeps room for such;
 * should even that be used up, the caller waits here, in small naps, for the
 * DPU to consume, which it always does unless it is gone.
 */
#include <string.h>
#include <time.h>

#include "epoll.h"
#include "quiet.h"
#include "sock.h"
#include "stats.h"
#include "udp.h"

#define NAP_NANOS 20000

bool pno_sock_record(struct pno_sock *s, struct pno_qp *q, struct pno_record r, const void *payload)
{
	struct pno_session *ses = s->ses;
	uint8_t *at;
	uint32_t n;

	if (atomic_load_explicit(&ses->lost, memory_order_relaxed))
		return false;
	for (;;) {
		n = r.len;
		pno_lock(&q->tx_lock);
		at = pno_qp_reserve(q, &n, n, false);
		if (at)
			break;
		pno_unlock(&q->tx_lock);
		if (pno_load32(&ses->header->status) != PNO_STATUS_UP)
			return false; /* the next sleep ends the session */
		quiet_nap(NAP_NANOS);
	}
	if (r.len)
		memcpy(at, payload, r.len);
	pno_qp_commit(q, r);
	pno_qp_publish(q);
	pno_unlock(&q->tx_lock);
	return true;
}

void pno_sock_ack(struct pno_sock *s, bool now)
{
	uint64_t read = pno_sock_consumed(s);

	if (s->state != PNO_OPEN || read == s->rx_told || (!now && !pno_sock_ack_due(s)))
		return;
	s->rx_told = read;
	pno_sock_record(s, s->qp, (struct pno_record){
		.op = PNO_OP_RX_ACK, .sock = s->handle, .ack = read }, NULL);
}

void pno_sock_claim(struct pno_sock *s, struct pno_chan *c)
{
	if (s->ring_full)
		pno_sock_leave_space(s);
	if (s->udp) {
		pno_udp_claim(s, c);
		return;
	}
	if (s->qp->chan->ses == c->ses)
		s->former |= 1ull << s->qp->chan->index;
	s->qp = &c->qp[s->shard];
	s->claiming = true;
	pno_count(claims);
	pno_sock_record(s, s->qp, (struct pno_record){ .op = PNO_OP_CLAIM, .sock = s->handle }, NULL);
	pno_epoll_follow(s);
}

static __thread struct pno_chan *thread_chan __attribute__((tls_model("initial-exec")));

struct pno_chan *pno_thread_chan(struct pno_session *ses)
{
	return thread_chan && thread_chan->ses == ses ? thread_chan : ses->chan[0];
}

void pno_thread_set_chan(struct pno_chan *c)
{
	thread_chan = c;
}
