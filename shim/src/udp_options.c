/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Options of datagram sockets.
 *
 * The placeholder, a datagram socket too, takes every option first: it knows
 * the rules, and answers getsockopt. What the DPU needs is read from it again,
 * so that the DPU gets the value that the kernel made of it.
 */
#include <errno.h>
#include <linux/net_tstamp.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <string.h>

#include "real.h"
#include "stats.h"
#include "udp.h"
#include "wait.h"

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif
#ifndef IPV6_FREEBIND
#define IPV6_FREEBIND 78
#endif

enum how { UNKNOWN, FORWARD, WANT, KEEP, REFUSE, GROUP };

static const struct {
	int level, name;
	enum how how;
} table[] = {
#define PNO_UDP_OPTION(level, name, how, note) { level, name, how },
#include "udp_options.def"
#undef PNO_UDP_OPTION
};

#define COUNT (sizeof table / sizeof table[0])
_Static_assert(COUNT <= 8 * sizeof ((struct pno_udp *)0)->set, "one bit each in pno_udp.set");

static void note(struct pno_udp *u, unsigned i)
{
	u->set[i / 64] |= 1ull << i % 64;
}

static unsigned find(int level, int name)
{
	unsigned i = 0;

	while (i < COUNT && (table[i].level != level || table[i].name != name))
		i++;
	return i;
}

/* The placeholder's value to every shard. */
static void tell(struct pno_sock *s, int fd, unsigned i)
{
	struct pno_opt_val v = { .level = table[i].level, .name = table[i].name };
	socklen_t len = sizeof(int);

	if (v.level == SOL_SOCKET && v.name == SO_RCVBUFFORCE)
		v.name = SO_RCVBUF;
	if (real.getsockopt(fd, v.level, v.name, v.val, &len) < 0)
		return;
	v.len = len;
	for (unsigned k = 0; k < s->udp->legs; k++)
		pno_sock_record(s, pno_udp_qp(s, k), (struct pno_record){
			.op = PNO_OP_SET_OPT, .len = sizeof v, .sock = s->udp->leg[k].handle }, &v);
}

void pno_udp_send_opts(struct pno_sock *s, int fd)
{
	for (unsigned i = 0; i < COUNT; i++)
		if (s->udp->set[i / 64] >> i % 64 & 1)
			tell(s, fd, i);
}

static uint32_t want_bit(int level, int name)
{
	static const struct {
		int level, name;
		uint32_t bit;
	} bits[] = {
		{ IPPROTO_IP, IP_PKTINFO, PNO_WANT_PKTINFO },
		{ IPPROTO_IP, IP_RECVTOS, PNO_WANT_TOS },
		{ IPPROTO_IP, IP_RECVTTL, PNO_WANT_TTL },
		{ IPPROTO_IPV6, IPV6_RECVPKTINFO, PNO_WANT_PKTINFO6 },
		{ IPPROTO_IPV6, IPV6_RECVTCLASS, PNO_WANT_TCLASS },
		{ IPPROTO_IPV6, IPV6_RECVHOPLIMIT, PNO_WANT_HOPLIMIT },
	};

	for (unsigned i = 0; i < sizeof bits / sizeof bits[0]; i++)
		if (bits[i].level == level && bits[i].name == name)
			return bits[i].bit;
	return 0;
}

/* The shim's share of an option. The kernel has found the value good. */
static void act(struct pno_sock *s, int level, int name, const void *val, socklen_t len)
{
	uint32_t bit = want_bit(level, name);
	struct timeval t;
	int v = 0;

	memcpy(&v, val, len < sizeof v ? len : sizeof v);
	if (bit)
		s->udp->want = v ? s->udp->want | bit : s->udp->want & ~bit;
	else if (level == IPPROTO_UDP && name == UDP_SEGMENT)
		s->udp->segment = v;
	else if (level == SOL_SOCKET && name == SO_RCVTIMEO && len >= sizeof t)
		s->rcv_millis = pno_millis(memcpy(&t, val, sizeof t));
	else if (level == SOL_SOCKET && name == SO_SNDTIMEO && len >= sizeof t)
		s->snd_millis = pno_millis(memcpy(&t, val, sizeof t));
	else if ((level == IPPROTO_IP && name == IP_MTU_DISCOVER) ||
		 (level == IPPROTO_IPV6 && name == IPV6_MTU_DISCOVER))
		s->udp->df = v == IP_PMTUDISC_DO || v == IP_PMTUDISC_PROBE;
}

void pno_udp_recall(struct pno_sock *s, int fd)
{
	for (unsigned i = 0; i < COUNT; i++) {
		uint8_t val[sizeof(struct timeval)];
		socklen_t len = sizeof val;

		if (table[i].how == FORWARD)
			note(s->udp, i);
		if (table[i].how != REFUSE && table[i].how != GROUP &&
		    real.getsockopt(fd, table[i].level, table[i].name, val, &len) == 0)
			act(s, table[i].level, table[i].name, val, len);
	}
}

/* Saying yes to what nobody does would be a lie. A socket that is not decided
 * yet counts as the DPU's, if most of this process's are. */
static bool unserved(const struct pno_sock *s, enum how how)
{
	const struct pno_session *ses;

	if (pno_sock_offloaded(s))
		return how == UNKNOWN || how == REFUSE || how == GROUP;
	if (how != REFUSE)
		return false;
	ses = pno_session_get();
	return ses && (ses->features & PNO_FEATURE_UDP) && ses->default_action == PNO_ACTION_OFFLOAD;
}

int pno_udp_setopt(struct pno_sock *s, int fd, int level, int name, const void *val, socklen_t len)
{
	unsigned i = find(level, name);
	enum how how = i < COUNT ? table[i].how : UNKNOWN;

	if (how == REFUSE && pno_option_is_off(val, len))
		how = KEEP; /* to have it off is what everybody does */
	if (unserved(s, how)) {
		pno_count(opt_unsupported);
		return how == UNKNOWN && real.setsockopt(fd, level, name, val, len) < 0 ? errno : ENOPROTOOPT;
	}
	if (level == IPPROTO_IPV6 && name == IPV6_V6ONLY && s->domain == AF_INET6 && s->state == PNO_DGRAM)
		return EINVAL; /* its port is taken */
	if (real.setsockopt(fd, level, name, val, len) < 0)
		return errno;
	if (i == COUNT || !val)
		return 0;
	act(s, level, name, val, len);
	if (how == FORWARD) {
		note(s->udp, i);
		if (s->state == PNO_DGRAM)
			tell(s, fd, i);
	}
	return 0;
}

static int answer(void *val, socklen_t *len, int v)
{
	if (*len > sizeof v)
		*len = sizeof v;
	memcpy(val, &v, *len);
	return 0;
}

int pno_udp_getopt(struct pno_sock *s, int level, int name, void *val, socklen_t *len)
{
	int err;

	if (!val || !len || !pno_sock_offloaded(s))
		return -1;
	if (level == SOL_SOCKET && name == SO_ERROR) {
		err = s->err;
		s->err = 0;
		pno_sock_refresh(s);
		return answer(val, len, err);
	}
	if ((level == IPPROTO_IP && name == IP_MTU) || (level == IPPROTO_IPV6 && name == IPV6_MTU))
		return s->peer.family ? answer(val, len, s->udp->mtu) : ENOTCONN;
	return -1;
}
