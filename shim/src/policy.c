/* SPDX-License-Identifier: Apache-2.0 */

/* Policy: a linear walk over at most PNO_MAX_RULES rules, at bind and connect. */
#include "policy.h"

#include <string.h>

static bool prefix_matches(const uint8_t *a, const uint8_t *b, unsigned bits)
{
	unsigned bytes = bits / 8, rest = bits % 8;

	if (memcmp(a, b, bytes))
		return false;
	return !rest || !((a[bytes] ^ b[bytes]) >> (8 - rest));
}

static bool matches(const struct pno_rule *r, int op, int proto, const struct pno_addr *a)
{
	unsigned most = a->family == 4 ? 32 : 128;

	return (r->ops & op) && (!r->proto || r->proto == proto) &&
	       (!r->family || r->family == a->family) &&
	       a->port >= r->port_lo && a->port <= r->port_hi &&
	       prefix_matches(r->addr, a->ip, r->prefix < most ? r->prefix : most);
}

int pno_policy(const struct pno_session *ses, int op, int proto, const struct pno_addr *a)
{
	for (uint32_t i = 0; i < ses->nrules; i++)
		if (matches(&ses->rules[i], op, proto, a))
			return ses->rules[i].action;
	return ses->default_action;
}
