/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The arena as libcrypto uses it: what is confined is reallocated and freed by
 * code that is not, and leaves nothing behind.
 */
#include "../locked.c"

#include <stdio.h>

#define CHECK(what)                                                                        \
	do {                                                                               \
		if (!(what)) {                                                             \
			fprintf(stderr, "line %d: %s\n", __LINE__, #what);                 \
			return 1;                                                          \
		}                                                                          \
	} while (0)

static bool wiped(const uint8_t *p, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (p[i])
			return false;
	}
	return true;
}

int main(void)
{
	uint8_t *p, *q;

	pno_confine();
	p = OPENSSL_malloc(100);
	pno_release();
	CHECK(p && ours(p) && held == 128);
	memset(p, 0xa5, 100);
	q = OPENSSL_realloc(p, 1000);
	CHECK(q && q != p && ours(q) && held == 1024 && wiped(p, 100));
	CHECK(q[0] == 0xa5 && q[99] == 0xa5);
	CHECK(!OPENSSL_realloc(q, 0));
	CHECK(held == 0 && wiped(q, 1000));
	pno_confine();
	CHECK(OPENSSL_malloc(1000) == q);
	pno_release();
	OPENSSL_free(q);
	CHECK(held == 0);
	p = OPENSSL_malloc(100);
	CHECK(p && !ours(p));
	OPENSSL_free(p);
	return 0;
}
