/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The C side of the libcrypto engine: a batch of private-key operations in one
 * call, on contexts that are made once for each worker, key and scheme. A
 * worker is one thread at a time; nothing here is shared between workers but
 * the keys, which libcrypto locks.
 */
#ifndef PNO_LIBCRYPTO_H
#define PNO_LIBCRYPTO_H

#include <stddef.h>
#include <stdint.h>

#define PNO_LC_IN  2048
#define PNO_LC_OUT 1024
#define PNO_LC_ERR 192

enum {
	PNO_LC_PKCS1 = 0,
	PNO_LC_PSS = 1,
	PNO_LC_ECDSA = 2,
	PNO_LC_ED25519 = 3,
	PNO_LC_RAW = 4, /* inside this process only: padding is removed in constant time in Go */
};

struct pno_lc;
struct pno_lc_key;

struct pno_lc_op {
	struct pno_lc_key *key;
	int family; /* PNO_LC_… */
	int bits;   /* of the hash: 256, 384, 512 */
	int rc;     /* 0, or what failed is in err */
	uint32_t in_len;
	uint32_t out_len;
	uint8_t in[PNO_LC_IN];
	uint8_t out[PNO_LC_OUT];
	char err[PNO_LC_ERR];
};

/* NULL, with the reason in err (PNO_LC_ERR bytes), when a provider is missing. */
struct pno_lc *pno_lc_new(const char *provider, const char *propquery, size_t heap, char *err);
void pno_lc_free(struct pno_lc *lc);

struct pno_lc_der {
	const uint8_t *at;
	size_t len;
};

/* Everything that it leaves of the private key is in locked memory. */
struct pno_lc_key *pno_lc_load(struct pno_lc *lc, struct pno_lc_der pkcs8, struct pno_lc_der spki, int workers, char *err);
void pno_lc_key_free(struct pno_lc_key *key);

void pno_lc_run(int worker, struct pno_lc_op *ops, int n);

const char *pno_lc_version(void);

#endif
