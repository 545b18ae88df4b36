/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The options that a socket remembers: in the kernel's reading, as getsockopt
 * gives them back. They are kept for three uses: to be sent to the DPU once the
 * socket has a place there, to be read back from an accepted connection (which
 * shares its kernel file with others), and to be handed down by a listener.
 *
 * Those that are on or off, of which nearly every connection has one, are two
 * bits of the socket; others are in a list.
 *
 * A listener's connections share one copy of its options, made at the first
 * accept after a change.
 */
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>

#include "listener.h"
#include "sock.h"
#include "memory.h"

/* An int, or a struct linger: no option is read as more than it has room for. */
#define LEAST_ROOM 8

#define FLAGS(F)                               \
	F(0, IPPROTO_TCP, TCP_NODELAY, true)   \
	F(1, IPPROTO_TCP, TCP_CORK, true)      \
	F(2, IPPROTO_TCP, TCP_QUICKACK, true)  \
	F(3, SOL_SOCKET, SO_KEEPALIVE, true)   \
	F(4, SOL_SOCKET, SO_REUSEADDR, false)  \
	F(5, SOL_SOCKET, SO_REUSEPORT, false)  \
	F(6, SOL_SOCKET, SO_OOBINLINE, false)

/* The two values of each, as of an option in a list. */
#define VALUE(level_, name_, forward_, v)                                                                \
	{ .level = level_, .name = name_, .len = sizeof(int), .room = LEAST_ROOM, .forward = forward_, \
	  .val = { v, 0, 0, 0, 0, 0, 0, 0 } }
#define VALUES(i, level, name, forward)                                 \
	static const struct pno_opt off##i = VALUE(level, name, forward, 0); \
	static const struct pno_opt on##i = VALUE(level, name, forward, 1);
#define PAIR(i, level, name, forward) { &off##i, &on##i },

FLAGS(VALUES)

static const struct pno_opt *const flags[][2] = { FLAGS(PAIR) };
#define NFLAGS (sizeof flags / sizeof flags[0])
_Static_assert(NFLAGS <= 8, "flags_set and flags_on are bytes");

/* Which of the flags it is; NFLAGS: none. */
static unsigned flag_of(int level, int name)
{
	unsigned i = 0;

	while (i < NFLAGS && (flags[i][0]->level != level || flags[i][0]->name != name))
		i++;
	return i;
}

static const struct pno_opt *flag_value(const struct pno_sock *s, unsigned i)
{
	return s->flags_set >> i & 1 ? flags[i][s->flags_on >> i & 1] : NULL;
}

static void set_flag(struct pno_sock *s, unsigned i, bool on)
{
	s->flags_set |= 1u << i;
	s->flags_on = (s->flags_on & ~(1u << i)) | (unsigned)on << i;
}

static struct pno_opt *find(struct pno_opt *o, int level, int name)
{
	while (o && (o->level != level || o->name != name))
		o = o->next;
	return o;
}

const struct pno_opt *pno_opt_find(const struct pno_sock *s, int level, int name)
{
	const struct pno_more *m = s->more;
	unsigned i = flag_of(level, name);
	struct pno_opt *o;

	if (i < NFLAGS)
		return flag_value(s, i);
	o = find(m->opts, level, name);
	return o || !m->inherited ? o : find(m->inherited->list, level, name);
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
	struct pno_optset *set = s->more->inherited;

	if (!set)
		return;
	s->more->inherited = NULL;
	if (atomic_fetch_sub(&set->refs, 1) == 1) {
		free_list(set->list);
		pno_free(set);
	}
}

static size_t size_of(unsigned room)
{
	return offsetof(struct pno_opt, val) + room;
}

const struct pno_opt *pno_opt_keep(struct pno_sock *s, int level, int name, const void *val, socklen_t len, bool forward)
{
	unsigned room = len > LEAST_ROOM ? len : LEAST_ROOM, i = flag_of(level, name);
	struct pno_opt **at, *o, *grown;

	if (i < NFLAGS) {
		set_flag(s, i, !pno_option_is_off(val, len));
		return flag_value(s, i);
	}
	if (!pno_sock_more(s))
		return NULL;
	if (s->state == PNO_LISTENING)
		drop_set(s);
	at = &s->more->opts;
	while ((o = *at) && (o->level != level || o->name != name))
		at = &o->next;
	if (!o || o->room < room) {
		grown = pno_alloc(size_of(room));
		if (!grown)
			return NULL;
		if (!o)
			at = &s->more->opts;
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
	if (s->more->opts) {
		free_list(s->more->opts);
		s->more->opts = NULL;
	}
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
	const struct pno_opt *o;

	for (unsigned i = 0; i < NFLAGS; i++)
		if ((o = flag_value(s, i)) && o->forward)
			pno_opt_tell(s, o);
	for (o = s->more->opts; o; o = o->next)
		if (o->forward)
			pno_opt_tell(s, o);
}

static void each(const struct pno_opt *o, void (*fn)(const struct pno_opt *, void *), void *arg)
{
	if (!o)
		return;
	each(o->next, fn, arg);
	fn(o, arg);
}

void pno_opt_each(const struct pno_sock *s, void (*fn)(const struct pno_opt *, void *), void *arg)
{
	const struct pno_opt *o;

	for (unsigned i = 0; i < NFLAGS; i++)
		if ((o = flag_value(s, i)))
			fn(o, arg);
	if (s->more->inherited)
		each(s->more->inherited->list, fn, arg);
	each(s->more->opts, fn, arg);
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
	c->flags_set = l->flags_set;
	c->flags_on = l->flags_on;
	if (!l->more->opts)
		return;
	if (!l->more->inherited)
		l->more->inherited = make_set(l->more->opts);
	if (!l->more->inherited || !pno_sock_more(c))
		return;
	c->more->inherited = l->more->inherited;
	atomic_fetch_add(&c->more->inherited->refs, 1);
	c->limited = l->limited;
	c->more->rx_limit = l->more->rx_limit;
	c->more->tx_limit = l->more->tx_limit;
	if (c->more->rx_limit)
		inherit_window(c, SO_RCVBUF);
	if (c->more->tx_limit)
		inherit_window(c, SO_SNDBUF);
}
