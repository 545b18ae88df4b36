/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A program whose address space is limited, as HAProxy's is by its option -m,
 * and a service's by LimitAS=.
 *
 * conf: not sanitized (shadow memory has no room within such a limit)
 */
#include <sys/resource.h>

#include "conf.h"

#define ROOM (24ul << 20)

/* Bytes of address space that are in use. */
static unsigned long in_use(void)
{
	unsigned long pages = 0;
	FILE *f = fopen("/proc/self/statm", "r");

	need(f && fscanf(f, "%lu", &pages) == 1, "statm");
	fclose(f);
	return pages * (unsigned long)sysconf(_SC_PAGESIZE);
}

static void little_address_space(void)
{
	struct rlimit lim = { in_use() + ROOM, in_use() + ROOM };
	char sent[100000], got[sizeof sent];
	int c, s;

	R(setrlimit(RLIMIT_AS, &lim));
	pair(AF_INET, &c, &s);
	fill(sent, sizeof sent);
	write_all(c, sent, sizeof sent);
	read_all(s, got, sizeof got);
	show_bytes("came", got, sizeof got);
	R(close(c));
	R(close(s));
}

int main(void)
{
	SECTION("little address space");
	little_address_space();
	return 0;
}
