/* SPDX-License-Identifier: Apache-2.0 */

/*
 * setsockopt and getsockopt.
 *
 * While a socket is fresh the kernel's socket takes every option, and those in
 * options.def are remembered for the DPU. A socket with a kernel file of its
 * own goes on setting the kernel's too: the kernel checks the value, and reads
 * it back as programs expect. Accepted sockets share one placeholder, so for
 * them the shim keeps what was set.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>

#include "real.h"
#include "sock.h"
#include "stats.h"

enum how { UNKNOWN, FORWARD, ASK, KEEP, REFUSE };

static const struct {
	int level, name;
	enum how how;
} table[] = {
#define PNO_OPTION(level, name, how) { level, name, how },
#include "options.def"
#undef PNO_OPTION
};

static enum how how_of(int level, int name)
{
	for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
		if (table[i].level == level && table[i].name == name)
			return table[i].how;
	return UNKNOWN;
}

static struct pno_opt *find(struct pno_opt *o, int level, int name)
{
	while (o && (o->level != level || o->name != name))
		o = o->next;
	return o;
}

static void free_list(struct pno_opt *o)
{
	while (o) {
		struct pno_opt *next = o->next;

		free(o);
		o = next;
	}
}

static void drop_set(struct pno_sock *s)
{
	struct pno_optset *set = s->inherited;

	s->inherited = NULL;
	if (set && atomic_fetch_sub(&set->refs, 1) == 1) {
		free_list(set->list);
		free(set);
	}
}

void pno_sock_forget_opts(struct pno_sock *s)
{
	free_list(s->opts);
	s->opts = NULL;
	drop_set(s);
}

/* The listener's options as they are now, for it and its connections. */
static struct pno_optset *make_set(const struct pno_opt *from)
{
	struct pno_optset *set = calloc(1, sizeof *set);
	struct pno_opt **end = &set->list;

	if (!set)
		return NULL;
	for (; from; from = from->next) {
		struct pno_opt *o = malloc(sizeof *o);

		if (!o)
			break;
		*o = *from;
		o->next = NULL;
		*end = o;
		end = &o->next;
	}
	atomic_init(&set->refs, 1);
	return set;
}

void pno_sock_inherit_opts(struct pno_sock *c, struct pno_sock *l)
{
	c->rcvtimeo = l->rcvtimeo;
	c->sndtimeo = l->sndtimeo;
	c->rcvlowat = l->rcvlowat;
	c->linger_reset = l->linger_reset;
	if (l->opts && !l->inherited)
		l->inherited = make_set(l->opts);
	c->inherited = l->inherited;
	if (c->inherited)
		atomic_fetch_add(&c->inherited->refs, 1);
}

static struct pno_opt *remembered(const struct pno_sock *s, int level, int name)
{
	struct pno_opt *o = find(s->opts, level, name);

	return o || !s->inherited ? o : find(s->inherited->list, level, name);
}

static int remember(struct pno_sock *s, int level, int name, const void *val, socklen_t len, bool forward)
{
	struct pno_opt *o = find(s->opts, level, name);

	if (s->state == PNO_LISTENING)
		drop_set(s);
	if (!o) {
		o = calloc(1, sizeof *o);
		if (!o)
			return ENOBUFS;
		o->level = level;
		o->name = name;
		o->next = s->opts;
		s->opts = o;
	}
	o->forward = forward;
	o->len = len;
	memcpy(o->val, val, len);
	return 0;
}

static void tell(struct pno_sock *s, struct pno_qp *q, uint32_t handle, const struct pno_opt *o)
{
	struct pno_opt_val v = { .level = o->level, .name = o->name, .len = o->len };

	memcpy(v.val, o->val, o->len);
	pno_sock_record(s, q, (struct pno_record){
		.op = PNO_OP_SET_OPT, .len = sizeof v, .sock = handle }, &v);
}

static void tell_everywhere(struct pno_sock *s, const struct pno_opt *o)
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

/* Sets an option that may be refused; 0 or the DPU's errno. */
static int ask_to_set(struct pno_sock *s, int level, int name, const void *val, socklen_t len)
{
	struct pno_opt_val v = { .level = level, .name = name, .len = len };
	bool listening = s->state == PNO_LISTENING;
	unsigned n = listening ? s->ses->shards : 1;
	int err = 0;

	memcpy(v.val, val, len);
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
			tell_everywhere(s, o);
}

/* Options whose effect is the shim's own. */
static void act(struct pno_sock *s, int level, int name, const void *val, socklen_t len)
{
	struct linger l;

	if (level != SOL_SOCKET)
		return;
	if (name == SO_RCVTIMEO && len >= sizeof s->rcvtimeo)
		memcpy(&s->rcvtimeo, val, sizeof s->rcvtimeo);
	if (name == SO_SNDTIMEO && len >= sizeof s->sndtimeo)
		memcpy(&s->sndtimeo, val, sizeof s->sndtimeo);
	if (name == SO_RCVLOWAT && len >= sizeof s->rcvlowat) {
		memcpy(&s->rcvlowat, val, sizeof s->rcvlowat);
		pno_sock_refresh(s);
	}
	if (name == SO_LINGER && len >= sizeof l) {
		memcpy(&l, val, sizeof l);
		s->linger_reset = l.l_onoff && !l.l_linger;
	}
}

/* Saying yes to what nobody does would be a lie. A socket that is not decided
 * yet counts as the DPU's, if most of this process's are. */
static bool unserved(const struct pno_sock *s, enum how how)
{
	const struct pno_session *ses;

	if (pno_sock_offloaded(s))
		return how == UNKNOWN || how == REFUSE;
	if (how != REFUSE)
		return false;
	ses = pno_session_get();
	return ses && ses->default_action == PNO_ACTION_OFFLOAD;
}

bool pno_option_is_granted(int level, int name)
{
	return (level == IPPROTO_IP && name == IP_TRANSPARENT) ||
	       (level == IPPROTO_IPV6 && name == IPV6_TRANSPARENT);
}

/* The kernel lets this process, but hostd does not. The DPU would refuse the
 * bind; here the program still expects it. */
static bool not_granted(const struct pno_sock *s, int level, int name)
{
	const struct pno_session *ses;

	if (!pno_option_is_granted(level, name))
		return false;
	ses = s->ses ? s->ses : pno_session_now();
	return ses && !ses->foreign && ses->default_action == PNO_ACTION_OFFLOAD;
}

int pno_sock_setopt(struct pno_sock *s, int fd, int level, int name, const void *val, socklen_t len)
{
	enum how how = how_of(level, name);
	int err;

	if (!val)
		return EFAULT;
	if (unserved(s, how)) {
		pno_count(opt_unsupported);
		return ENOPROTOOPT;
	}
	if (unlikely(not_granted(s, level, name)))
		return EPERM;
	if (s->own_file) {
		if (real.setsockopt(fd, level, name, val, len) < 0)
			return errno;
	} else if (len < sizeof(int) && name != TCP_CONGESTION) {
		return EINVAL;
	}
	if (how == UNKNOWN || how == REFUSE)
		return 0; /* the kernel's socket has it */
	if (len > sizeof s->opts->val)
		return EINVAL;
	if (how == ASK && s->ses && (s->state == PNO_OPEN || s->state == PNO_LISTENING)) {
		err = ask_to_set(s, level, name, val, len);
		if (err)
			return err;
	}
	err = remember(s, level, name, val, len, how != KEEP);
	if (err)
		return err;
	act(s, level, name, val, len);
	if (how == FORWARD && pno_sock_offloaded(s) && s->ses)
		tell_everywhere(s, remembered(s, level, name));
	return 0;
}

static int answer(void *val, socklen_t *len, const void *from, socklen_t size)
{
	if (!val || !len)
		return EFAULT;
	if (*len > size)
		*len = size;
	memcpy(val, from, *len);
	return 0;
}

static int answer_int(void *val, socklen_t *len, int v)
{
	return answer(val, len, &v, sizeof v);
}

/* What only the DPU knows. */
static int ask_dpu(struct pno_sock *s, int level, int name, void *val, socklen_t *len)
{
	struct pno_opt_val v = { .level = level, .name = name, .len = sizeof v.val };
	struct pno_call call;
	int err;

	if (*len < v.len)
		v.len = *len;
	err = pno_sock_ask(s, s->qp, (struct pno_record){
		.op = PNO_OP_GET_OPT, .len = sizeof v, .sock = s->handle }, &v, &call);
	if (err)
		return err;
	if (call.len < sizeof v)
		return ENOPROTOOPT;
	memcpy(&v, call.payload, sizeof v);
	return v.len <= sizeof v.val ? answer(val, len, v.val, v.len) : ENOPROTOOPT;
}

static int get_common(struct pno_sock *s, int name, void *val, socklen_t *len)
{
	int err;

	switch (name) {
	case SO_ERROR:
		err = s->err;
		s->err = 0;
		pno_sock_refresh(s);
		return answer_int(val, len, err);
	case SO_TYPE:
		return answer_int(val, len, SOCK_STREAM);
	case SO_DOMAIN:
		return answer_int(val, len, s->domain);
	case SO_PROTOCOL:
		return answer_int(val, len, IPPROTO_TCP);
	case SO_ACCEPTCONN:
		return answer_int(val, len, s->state == PNO_LISTENING && !s->listener->stopped);
	}
	return -1;
}

int pno_sock_getopt(struct pno_sock *s, int level, int name, void *val, socklen_t *len)
{
	struct pno_opt *o;
	int rc;

	if (!val || !len)
		return EFAULT;
	if (!pno_sock_offloaded(s))
		return -1;
	if (level == SOL_SOCKET) {
		rc = get_common(s, name, val, len);
		if (rc >= 0)
			return rc;
	}
	if (level == IPPROTO_TCP && (name == TCP_INFO || name == TCP_MAXSEG || name == TCP_CONGESTION) &&
	    s->state == PNO_OPEN && s->ses)
		return ask_dpu(s, level, name, val, len);
	if (s->own_file)
		return -1;
	o = remembered(s, level, name);
	if (!o)
		return -1; /* the default, which the template has */
	if (level == SOL_SOCKET && (name == SO_SNDBUF || name == SO_RCVBUF)) {
		int v;

		memcpy(&v, o->val, sizeof v);
		return answer_int(val, len, 2 * v); /* as the kernel counts */
	}
	return answer(val, len, o->val, o->len);
}
