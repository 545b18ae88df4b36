/* SPDX-License-Identifier: Apache-2.0 */

/*
 * MSG_MORE on datagram sockets: what several sends bring becomes one datagram,
 * which the first one without the flag sends off. The first one says where to
 * and with which control messages; what is wrong later drops all of it, as in
 * the kernel.
 */
#include <errno.h>
#include <stdlib.h>

#include "fault.h"
#include "memory.h"
#include "udp.h"

struct pno_cork {
	struct pno_dgram h;
	struct pno_addr to;
	size_t len;
	uint8_t data[PNO_MAX_DGRAM];
};

size_t pno_udp_corked(const struct pno_sock *s, struct pno_dgram *h, struct pno_addr *to)
{
	const struct pno_cork *c = s->udp->cork;

	*h = c->h;
	*to = c->to;
	return c->len;
}

void pno_udp_cork_drop(struct pno_sock *s)
{
	pno_free(s->udp->cork);
	s->udp->cork = NULL;
}

int pno_udp_cork(struct pno_sock *s, const struct pno_dgram *h, const struct pno_addr *to, const struct msghdr *m)
{
	struct pno_cork *c = s->udp->cork;

	if (!c) {
		c = s->udp->cork = pno_alloc(sizeof *c);
		if (!c)
			return ENOBUFS;
		c->h = *h;
		c->to = *to;
		c->len = 0;
	}
	for (size_t i = 0; i < m->msg_iovlen; i++) {
		size_t n = m->msg_iov[i].iov_len;

		if (n > sizeof c->data - c->len)
			return EMSGSIZE; /* another thread has changed the vector */
		if (!pno_copy(c->data + c->len, m->msg_iov[i].iov_base, n))
			return EFAULT;
		c->len += n;
	}
	return 0;
}

struct pno_cork *pno_udp_cork_take(struct pno_sock *s, struct iovec *whole)
{
	struct pno_cork *c = s->udp->cork;

	s->udp->cork = NULL;
	*whole = (struct iovec){ c->data, c->len };
	return c;
}
