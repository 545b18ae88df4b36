/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The options that a socket remembers: in the kernel's reading, as getsockopt
 * gives them back. They are kept for three uses: to be sent to the DPU once the
 * socket has a place there, to be read back from an accepted connection (which
 * shares its kernel file with others), and to be handed down by a listener.
 *
 * A listener's connections share one copy of its options, made at the first
 * accept after a change.
 */
#include <stdlib.h>
#include <string.h>

#include "sock.h"
#include "memory.h"

static struct pno_opt *find(struct pno_opt *o, int level, int name)
{
	while (o && (o->level != level || o->name != name))
		o = o->next;
	return o;
}

struct pno_opt *pno_opt_find(const struct pno_sock *s, int level, int name)
{
	struct pno_opt *o = find(s->opts, level, name);

	return o || !s->inherited ? o : find(s->inherited->list, level, name);
}

static void free_list(struct pno_opt *o)
{
	while (o) {
		struct pno_opt *next = o->next;

		pno_free(o);
		o = next;
	}
}

static void drop_set(struct pno_sock *s)
{
	struct pno_optset *set = s->inherited;

	s->inherited = NULL;
	if (set && atomic_fetch_sub(&set->refs, 1) == 1) {
		free_list(set->list);
		pno_free(set);
	}
}

/* An int, or a struct linger: no option is read as more than it has room for. */
#define LEAST_ROOM 8

static size_t size_of(unsigned room)
{
	return offsetof(struct pno_opt, val) + room;
}

struct pno_opt *pno_opt_keep(struct pno_sock *s, int level, int name, const void *val, socklen_t len, bool forward)
{
	struct pno_opt **at = &s->opts, *o, *grown;
	unsigned room = len > LEAST_ROOM ? len : LEAST_ROOM;

	if (s->state == PNO_LISTENING)
		drop_set(s);
	while ((o = *at) && (o->level != level || o->name != name))
		at = &o->next;
	if (!o || o->room < room) {
		grown = pno_alloc(size_of(room));
		if (!grown)
			return NULL;
		if (!o)
			at = &s->opts;
		grown->next = o ? o->next : *at;
		pno_free(o);
		*at = o = grown;
		o->room = room;
	}
	o->level = level;
	o->name = name;
	o->forward = forward;
	o->len = len;
	memset(o->val, 0, o->room);
	memcpy(o->val, val, len);
	return o;
}

void pno_sock_forget_opts(struct pno_sock *s)
{
	free_list(s->opts);
	s->opts = NULL;
	drop_set(s);
}

static struct pno_optset *make_set(const struct pno_opt *from)
{
	struct pno_optset *set = pno_calloc(1, sizeof *set);
	struct pno_opt **end;

	if (!set)
		return NULL;
	for (end = &set->list; from; from = from->next) {
		struct pno_opt *o = pno_alloc(size_of(from->room));

		if (!o)
			break;
		memcpy(o, from, size_of(from->room));
		o->next = NULL;
		*end = o;
		end = &o->next;
	}
	atomic_init(&set->refs, 1);
	return set;
}

/* The DPU's form: of a buffer, the half that is for data. */
static void wire_form(int level, int name, const void *val, socklen_t len, struct pno_opt_val *v)
{
	uint32_t n;

	*v = (struct pno_opt_val){ .level = level, .name = name, .len = len };
	memcpy(v->val, val, len);
	if (level == SOL_SOCKET && (name == SO_SNDBUF || name == SO_RCVBUF)) {
		memcpy(&n, val, sizeof n);
		n /= 2;
		memcpy(v->val, &n, sizeof n);
	}
}

static void tell(struct pno_sock *s, struct pno_qp *q, uint32_t handle, const struct pno_opt *o)
{
	struct pno_opt_val v;

	wire_form(o->level, o->name, o->val, o->len, &v);
	pno_sock_record(s, q, (struct pno_record){
		.op = PNO_OP_SET_OPT, .len = sizeof v, .sock = handle }, &v);
}

void pno_opt_tell(struct pno_sock *s, const struct pno_opt *o)
{
	if (s->state != PNO_LISTENING) {
		if (s->state == PNO_OPEN || s->state == PNO_CONNECTING)
			tell(s, s->qp, s->handle, o);
		return;
	}
	for (unsigned i = 0; i < s->ses->shards; i++)
		if (s->listener->handle[i])
			tell(s, &s->ses->chan[0]->qp[i], s->listener->handle[i], o);
}

int pno_opt_ask(struct pno_sock *s, int level, int name, const void *val, socklen_t len)
{
	bool listening = s->state == PNO_LISTENING;
	unsigned n = listening ? s->ses->shards : 1;
	struct pno_opt_val v;
	int err = 0;

	wire_form(level, name, val, len, &v);
	for (unsigned i = 0; i < n && !err; i++) {
		struct pno_qp *q = listening ? &s->ses->chan[0]->qp[i] : s->qp;
		uint32_t handle = listening ? s->listener->handle[i] : s->handle;
		struct pno_call call;

		if (handle)
			err = pno_sock_ask(s, q, (struct pno_record){
				.op = PNO_OP_SET_OPT, .len = sizeof v, .sock = handle }, &v, &call);
	}
	return err;
}

void pno_sock_send_opts(struct pno_sock *s)
{
	for (const struct pno_opt *o = s->opts; o; o = o->next)
		if (o->forward)
			pno_opt_tell(s, o);
}

/* The DPU gives a connection its listener's options by itself. But how small a
 * window is both sides must know, from the same record on. */
static void inherit_window(struct pno_sock *c, int name)
{
	const struct pno_opt *o = pno_opt_find(c, SOL_SOCKET, name);

	if (o)
		pno_opt_tell(c, o);
}

void pno_sock_inherit_opts(struct pno_sock *c, struct pno_sock *l)
{
	c->rcv_millis = l->rcv_millis;
	c->snd_millis = l->snd_millis;
	c->rcvlowat = l->rcvlowat;
	c->linger_reset = l->linger_reset;
	if (!l->opts)
		return;
	if (!l->inherited)
		l->inherited = make_set(l->opts);
	c->inherited = l->inherited;
	if (!c->inherited)
		return;
	atomic_fetch_add(&c->inherited->refs, 1);
	c->rx_limit = l->rx_limit;
	c->tx_limit = l->tx_limit;
	if (c->rx_limit)
		inherit_window(c, SO_RCVBUF);
	if (c->tx_limit)
		inherit_window(c, SO_SNDBUF);
}
