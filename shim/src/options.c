/* SPDX-License-Identifier: Apache-2.0 */

/*
 * setsockopt and getsockopt. What is done with an option says options.def.
 *
 * While a socket is fresh the kernel's socket takes every option, and those in
 * options.def are remembered for the DPU. A socket with a kernel file of its
 * own goes on setting the kernel's too: the kernel checks the value, and reads
 * it back as programs expect. Accepted sockets share one kernel file, so for
 * them the shim keeps what was set; a kernel socket made for the purpose checks
 * the value, and gives the defaults.
 */
#include <errno.h>
#include <limits.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

#include "listener.h"
#include "options.h"
#include "real.h"
#include "sock.h"
#include "stats.h"
#include "wait.h"

enum how { UNKNOWN, FORWARD, ASK, KEEP, READ, REFUSE };

struct row {
	int level, name;
	enum how how;
	int err; /* with REFUSE */
};

static const struct row table[] = {
#define PNO_OPTION(level, name, how, note)  { level, name, how, 0 },
#define PNO_REFUSED(level, name, err, note) { level, name, REFUSE, err },
#include "options.def"
#undef PNO_OPTION
#undef PNO_REFUSED
};

static struct row row_of(int level, int name)
{
	for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
		if (table[i].level == level && table[i].name == name)
			return table[i];
	return (struct row){ level, name, UNKNOWN, ENOPROTOOPT };
}

/*
 * What servers set for each connection: the kernel's rules for these are known
 * here, so that no kernel socket has to be asked. Flags become 0 or 1.
 */
static const struct {
	int level, name, low, high; /* high 0: a flag */
} rules[] = {
	{ IPPROTO_TCP, TCP_NODELAY, 0, 0 },
	{ IPPROTO_TCP, TCP_CORK, 0, 0 },
	{ IPPROTO_TCP, TCP_QUICKACK, 0, 0 },
	{ SOL_SOCKET, SO_KEEPALIVE, 0, 0 },
	{ SOL_SOCKET, SO_REUSEADDR, 0, 0 },
	{ SOL_SOCKET, SO_REUSEPORT, 0, 0 },
	{ SOL_SOCKET, SO_OOBINLINE, 0, 0 },
	{ IPPROTO_TCP, TCP_KEEPIDLE, 1, 32767 },
	{ IPPROTO_TCP, TCP_KEEPINTVL, 1, 32767 },
	{ IPPROTO_TCP, TCP_KEEPCNT, 1, 127 },
	{ IPPROTO_TCP, TCP_USER_TIMEOUT, 0, INT_MAX },
};

static bool is_buffer(int level, int name)
{
	return level == SOL_SOCKET && (name == SO_SNDBUF || name == SO_RCVBUF);
}

bool pno_option_is_off(const void *value, socklen_t len)
{
	const uint8_t *val = value;

	while (len && !val[len - 1])
		len--;
	return !len;
}

/* A kernel socket like this one. */
static int like(const struct pno_sock *s)
{
	return pno_fd_own(real.socket(s->domain, SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_TCP));
}

struct value {
	uint8_t b[64];
	socklen_t len;
};

static int linger_reading(const struct pno_sock *s, const void *val, socklen_t len, struct value *out)
{
	const struct pno_opt *o = pno_opt_find(s, SOL_SOCKET, SO_LINGER);
	struct linger l, before = { 0 };

	if (len < sizeof l)
		return EINVAL;
	memcpy(&l, val, sizeof l);
	if (o)
		memcpy(&before, o->val, sizeof before);
	l.l_linger = l.l_onoff ? l.l_linger : before.l_linger;
	l.l_onoff = !!l.l_onoff;
	memcpy(out->b, &l, sizeof l);
	out->len = sizeof l;
	return 0;
}

/* By the rules above: 0, an errno, or -1 without one. */
static int own_reading(const struct pno_sock *s, const struct row *r, const void *val, socklen_t len, struct value *out)
{
	int n;

	if (r->level == SOL_SOCKET && r->name == SO_LINGER)
		return linger_reading(s, val, len, out);
	for (size_t i = 0; i < sizeof rules / sizeof rules[0]; i++) {
		if (rules[i].level != r->level || rules[i].name != r->name)
			continue;
		if (len < sizeof n)
			return EINVAL;
		memcpy(&n, val, sizeof n);
		if (!rules[i].high)
			n = !!n;
		else if (n < rules[i].low || n > rules[i].high)
			return EINVAL;
		memcpy(out->b, &n, sizeof n);
		out->len = sizeof n;
		return 0;
	}
	return -1;
}

/* The kernel checks the value, and what it makes of it is read back: 0 or an
 * errno. That of TCP_MAXSEG does not come back before there is a connection. */
static int set_and_read(int file, const struct row *r, const void *val, socklen_t len, struct value *out)
{
	if (real.setsockopt(file, r->level, r->name, val, len) < 0)
		return errno;
	out->len = len < sizeof out->b ? len : sizeof out->b;
	memcpy(out->b, val, out->len);
	if (r->how == READ || (r->level == IPPROTO_TCP && r->name == TCP_MAXSEG))
		return 0;
	out->len = sizeof out->b;
	if (real.getsockopt(file, r->level, r->name, out->b, &out->len) < 0 || out->len > sizeof out->b)
		return ENOPROTOOPT;
	return 0;
}

/* The placeholder of a connection that was passed on is no TCP socket. */
static bool file_knows(const struct pno_sock *s, int level)
{
	return s->own_file && (!s->pair || level == SOL_SOCKET);
}

/* The value as getsockopt will give it: 0 or an errno. */
static int kernel_reading(const struct pno_sock *s, int fd, const struct row *r, const void *val, socklen_t len,
			  struct value *out)
{
	int err = own_reading(s, r, val, len, out), file;

	if (file_knows(s, r->level) && err >= 0)
		return real.setsockopt(fd, r->level, r->name, val, len) < 0 ? errno : err;
	if (file_knows(s, r->level))
		return set_and_read(fd, r, val, len, out);
	if (err >= 0)
		return err;
	file = like(s);
	if (file < 0)
		return ENOBUFS;
	err = set_and_read(file, r, val, len, out);
	pno_fd_disown(file);
	return err;
}

/* Options whose effect is the shim's own. */
static void act(struct pno_sock *s, const struct row *r, const struct value *v)
{
	struct timeval t;
	struct linger l;
	uint32_t n;

	if (r->level != SOL_SOCKET)
		return;
	if (r->name == SO_RCVTIMEO && v->len >= sizeof t)
		s->rcv_millis = pno_millis(memcpy(&t, v->b, sizeof t));
	if (r->name == SO_SNDTIMEO && v->len >= sizeof t)
		s->snd_millis = pno_millis(memcpy(&t, v->b, sizeof t));
	if (r->name == SO_RCVLOWAT && v->len >= sizeof s->rcvlowat) {
		memcpy(&s->rcvlowat, v->b, sizeof s->rcvlowat);
		pno_sock_refresh(s);
	}
	if (r->name == SO_LINGER && v->len >= sizeof l) {
		memcpy(&l, v->b, sizeof l);
		s->linger_reset = l.l_onoff && !l.l_linger;
	}
	if (!is_buffer(r->level, r->name))
		return;
	memcpy(&n, v->b, sizeof n);
	n = n / 2 < PNO_LEAST_WINDOW ? PNO_LEAST_WINDOW : n / 2;
	s->limited = true;
	if (r->name == SO_SNDBUF) {
		s->more->tx_limit = n; /* which the option has made room for */
	} else {
		s->more->rx_limit = n;
		if (s->ses)
			pno_sock_ack(s, true); /* or what is unreported would fill the smaller window */
	}
	pno_sock_refresh(s);
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
static bool not_granted(const struct pno_sock *s, const struct row *r)
{
	const struct pno_session *ses;

	if (!pno_option_is_granted(r->level, r->name))
		return false;
	ses = s->ses ? s->ses : pno_session_now();
	return ses && !(ses->features & PNO_FEATURE_FOREIGN) && ses->default_action == PNO_ACTION_OFFLOAD;
}

/* The stack has what every kernel has, and no more. */
static bool unknown_congestion(const struct pno_sock *s, const struct row *r, const struct value *v)
{
	if (r->level != IPPROTO_TCP || r->name != TCP_CONGESTION || !unserved(s, REFUSE))
		return false;
	return strncmp((const char *)v->b, "cubic", sizeof v->b) && strncmp((const char *)v->b, "reno", sizeof v->b);
}

/* IPv6's options do nothing for a socket that speaks IPv4, but are there. */
static bool of_other_family(const struct pno_sock *s, const struct row *r)
{
	return r->level == IPPROTO_IPV6 && s->local.family == 4;
}

/* What the kernel would say because of the socket's state, which its file does
 * not have. */
static int too_late(const struct pno_sock *s, const struct row *r)
{
	bool connection = s->state == PNO_OPEN || s->state == PNO_CONNECTING || s->state == PNO_PARKED;

	if (!pno_sock_offloaded(s))
		return 0;
	if (r->level == IPPROTO_IPV6 && r->name == IPV6_V6ONLY && s->domain == AF_INET6)
		return pno_sock_gave_port_back(s) ? 0 : EINVAL;
	return r->level == IPPROTO_TCP && r->name == TCP_FASTOPEN_NO_COOKIE && connection ? EINVAL : 0;
}

int pno_sock_setopt(struct pno_sock *s, int fd, int level, int name, const void *val, socklen_t len)
{
	struct row r = row_of(level, name);
	struct value v;
	const struct pno_opt *o;
	int err;

	if (r.how == REFUSE && pno_option_is_off(val, len))
		r.how = KEEP; /* to have it off is what everybody does */
	if (unlikely(unserved(s, r.how))) {
		pno_count(opt_unsupported);
		err = r.how == UNKNOWN ? kernel_reading(s, fd, &r, val, len, &v) : 0;
		return err ? err : r.err;
	}
	if (unlikely(not_granted(s, &r)))
		return EPERM;
	err = too_late(s, &r);
	if (!err)
		err = kernel_reading(s, fd, &r, val, len, &v);
	if (!err && unlikely(unknown_congestion(s, &r, &v)))
		err = ENOENT;
	if (err || r.how == UNKNOWN || r.how == REFUSE || r.how == READ)
		return err; /* the kernel's socket has it */
	if (r.how != KEEP && pno_sock_offloaded(s) && of_other_family(s, &r))
		r.how = KEEP;
	if (level == IPPROTO_TCP && name == TCP_MAXSEG && s->state == PNO_OPEN)
		return 0; /* it was for the handshake */
	if (r.how == ASK && s->ses && (s->state == PNO_OPEN || s->state == PNO_LISTENING)) {
		err = pno_opt_ask(s, level, name, v.b, v.len);
		if (err)
			return err;
	}
	o = pno_opt_keep(s, level, name, v.b, v.len, r.how != KEEP);
	if (!o)
		return ENOBUFS;
	act(s, &r, &v);
	if (pno_sock_offloaded(s) && s->ses && (r.how == FORWARD || (r.how == ASK && s->state == PNO_CONNECTING)))
		pno_opt_tell(s, o);
	return 0;
}

/* What differs from a socket that nobody has touched has been set. */
void pno_sock_recall_opts(struct pno_sock *s, int fd)
{
	int file = like(s);

	for (size_t i = 0; file >= 0 && i < sizeof table / sizeof table[0]; i++) {
		const struct row *r = &table[i];
		struct value v = { .len = sizeof v.b }, untouched = { .len = sizeof v.b };

		if (r->how == READ || r->how == REFUSE ||
		    real.getsockopt(fd, r->level, r->name, v.b, &v.len) < 0 ||
		    real.getsockopt(file, r->level, r->name, untouched.b, &untouched.len) < 0 ||
		    (v.len == untouched.len && !memcmp(v.b, untouched.b, v.len)))
			continue;
		if (pno_opt_keep(s, r->level, r->name, v.b, v.len, r->how != KEEP))
			act(s, r, &v);
	}
	if (file >= 0)
		pno_fd_disown(file);
}

static int answer(void *val, socklen_t *len, const void *from, socklen_t size)
{
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

int pno_sock_unsent(struct pno_sock *s, uint64_t *n)
{
	int mss, err = 0;
	socklen_t len = sizeof mss;

	/* Its answer to any question comes after the acknowledgement of all that
	 * it has taken. */
	if (s->tx_sent != s->tx_acked && s->state == PNO_OPEN && s->ses)
		err = ask_dpu(s, IPPROTO_TCP, TCP_MAXSEG, &mss, &len);
	*n = s->tx_sent - s->tx_acked;
	return err == EBADF ? err : 0;
}

static int get_common(struct pno_sock *s, int name, void *val, socklen_t *len)
{
	int err;

	switch (name) {
	case SO_ERROR:
		if (!s->err && s->qp && pno_qp_moved(s->qp) && !pno_sock_look(s))
			return EBADF;
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

/* TCP_INFO of a socket without a connection. The queue of a listener is where
 * the kernel has it, too. */
static int idle_info(const struct pno_sock *s, void *val, socklen_t *len)
{
	struct tcp_info info = { .tcpi_state = 7 /* TCP_CLOSE */ };

	if (s->state == PNO_CONNECTING)
		info.tcpi_state = 2; /* TCP_SYN_SENT */
	if (s->state == PNO_LISTENING && !s->listener->stopped) {
		info.tcpi_state = 10; /* TCP_LISTEN */
		info.tcpi_unacked = s->listener->parked;
		info.tcpi_sacked = s->listener->backlog;
	}
	return answer(val, len, &info, sizeof info);
}

static bool dpu_knows(int level, int name)
{
	switch (level) {
	case IPPROTO_TCP:
		return name == TCP_INFO || name == TCP_MAXSEG || name == TCP_CONGESTION;
	case IPPROTO_IP:
		return name == IP_MTU;
	case IPPROTO_IPV6:
		return name == IPV6_MTU;
	}
	return false;
}

/* The program may have asked for less, which includes the timestamps. */
static void least_segment(const struct pno_sock *s, void *val, socklen_t len)
{
	const struct pno_opt *o = pno_opt_find(s, IPPROTO_TCP, TCP_MAXSEG);
	int most, here;

	if (!o || len < sizeof most)
		return;
	memcpy(&most, o->val, sizeof most);
	memcpy(&here, val, sizeof here);
	most -= 12;
	if (most > 0 && most < here)
		memcpy(val, &most, sizeof most);
}

/* Nobody translates addresses on the way: getsockname says where a connection
 * was meant to go, also one that a transparent listener took. */
static bool is_original_dst(const struct pno_sock *s, int level, int name)
{
	return name == PNO_SO_ORIGINAL_DST && (level == IPPROTO_IP || (level == IPPROTO_IPV6 && s->domain == AF_INET6));
}

/* What a kernel socket says that nobody has touched. Its cookie no other
 * socket will have: this one keeps it. */
static int default_of(struct pno_sock *s, int level, int name, void *val, socklen_t *len)
{
	int file = like(s), err = 0;

	if (file < 0)
		return ENOBUFS;
	if (real.getsockopt(file, level, name, val, len) < 0)
		err = errno;
	else if (level == SOL_SOCKET && name == SO_COOKIE && !pno_opt_keep(s, level, name, val, *len, false))
		err = ENOBUFS;
	pno_fd_disown(file);
	return err;
}

/* What a connection's window may grow to: half of its buffer. */
static int window_clamp(struct pno_sock *s, void *val, socklen_t *len)
{
	const struct pno_opt *o = pno_opt_find(s, SOL_SOCKET, SO_RCVBUF);
	socklen_t size = sizeof(int);
	int n = 0, err = 0;

	if (o)
		memcpy(&n, o->val, sizeof n);
	else
		err = default_of(s, SOL_SOCKET, SO_RCVBUF, &n, &size);
	return err ? err : answer_int(val, len, n / 2);
}

/* What another process may have set, and the placeholder does not keep. */
static bool set_elsewhere(const struct pno_sock *s, int level, int name)
{
	enum how how = row_of(level, name).how;

	return s->pair && (how == FORWARD || how == ASK) && s->state == PNO_OPEN && s->ses;
}

int pno_sock_getopt(struct pno_sock *s, int level, int name, void *val, socklen_t *len)
{
	const struct pno_opt *o;
	bool own;
	int rc;

	if (!pno_sock_offloaded(s))
		return -1;
	if (level == SOL_SOCKET) {
		rc = get_common(s, name, val, len);
		if (rc >= 0)
			return rc;
	}
	if (dpu_knows(level, name) && s->state == PNO_OPEN && s->ses) {
		rc = ask_dpu(s, level, name, val, len);
		if (level == IPPROTO_TCP && name == TCP_MAXSEG && !rc)
			least_segment(s, val, *len);
		return rc;
	}
	if (level == IPPROTO_TCP && name == TCP_INFO)
		return idle_info(s, val, len);
	if (is_original_dst(s, level, name) && s->state == PNO_OPEN)
		return ENOENT;
	if (level == IPPROTO_TCP && name == TCP_WINDOW_CLAMP && s->state == PNO_OPEN)
		return window_clamp(s, val, len);
	own = level == SOL_SOCKET && name == SO_COOKIE; /* it had one before it had a file */
	if (file_knows(s, level) && !own)
		return -1;
	o = pno_opt_find(s, level, name);
	if (o)
		return answer(val, len, o->val, o->len);
	if (file_knows(s, level))
		return -1;
	if (set_elsewhere(s, level, name) && ask_dpu(s, level, name, val, len) == 0)
		return 0;
	return default_of(s, level, name, val, len);
}
