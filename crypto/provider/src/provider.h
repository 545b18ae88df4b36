/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What the parts of the provider share: the context of one loaded instance,
 * keys, and errors. provider.c says how the parts fit together.
 */
#ifndef PNO_PROVIDER_H
#define PNO_PROVIDER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <openssl/core.h>
#include <openssl/core_dispatch.h>
#include <openssl/evp.h>
#include <openssl/provider.h>

#include "protocol.h"

struct pno_agent;

/* The hashes that schemes are made with, by index. */
enum pno_hash { PNO_SHA256, PNO_SHA384, PNO_SHA512, PNO_HASHES, PNO_NO_HASH = PNO_HASHES };

/* One loaded instance; made by OSSL_provider_init, ended by its teardown. */
struct pno_prov {
	const OSSL_CORE_HANDLE *handle;
	OSSL_FUNC_core_get_params_fn *get_params;
	OSSL_FUNC_core_new_error_fn *new_error;
	OSSL_FUNC_core_set_error_debug_fn *set_error_debug;
	OSSL_FUNC_core_vset_error_fn *vset_error;

	OSSL_LIB_CTX *lib;      /* with nothing but the default provider; not ours to free */
	EVP_MD *md[PNO_HASHES]; /* of lib */
	struct pno_agent *agent;
};

enum pno_type { PNO_KEY_RSA, PNO_KEY_EC, PNO_KEY_ED25519, PNO_KEY_TYPES };

/* A key by reference: counted, and never changed once it is made. */
struct pno_key {
	struct pno_prov *prov;
	atomic_uint refs;
	enum pno_type type;
	bool tls13_only;
	uint8_t id[PNO_KEY_ID_LEN];
	EVP_PKEY *pub; /* of prov->lib */
	size_t size;   /* of a signature, at most; with RSA exactly */
};

/* Reason codes on the OpenSSL error stack. */
enum pno_reason {
	PNO_R_BAD_KEY_REFERENCE = 1,
	PNO_R_KEY_TYPE,
	PNO_R_DIGEST,
	PNO_R_PADDING,
	PNO_R_SALT_LENGTH,
	PNO_R_INPUT,
	PNO_R_TLS13_ONLY,
	PNO_R_NO_KEY,
	PNO_R_BUFFER,
	PNO_R_MEMORY,
	PNO_R_LOCAL,
	PNO_R_AGENT_GONE,
	PNO_R_AGENT_TIMEOUT,
	PNO_R_AGENT_ANSWER,
	PNO_R_UNKNOWN_KEY,
	PNO_R_DENIED,
	PNO_R_REFUSED,
	PNO_R_BUSY,
	PNO_R_CLUSTER,
};

extern const OSSL_ITEM pno_reasons[];

void pno_raise_at(const struct pno_prov *p, const char *file, int line, const char *func,
		  enum pno_reason reason, const char *format, ...) __attribute__((format(printf, 6, 7)));

#define pno_raise(p, reason, ...) pno_raise_at(p, __FILE__, __LINE__, __func__, reason, __VA_ARGS__)

/* key.c */
extern const char *const pno_type_name[PNO_KEY_TYPES];
struct pno_key *pno_key_parse(struct pno_prov *p, const uint8_t *der, size_t len);
struct pno_key *pno_key_up(struct pno_key *k);
void pno_key_free(struct pno_key *k);

/* What each file offers to OpenSSL. */
extern const OSSL_ALGORITHM pno_keymgmts[], pno_signatures[], pno_decoders[], pno_asym_ciphers[];

#endif
