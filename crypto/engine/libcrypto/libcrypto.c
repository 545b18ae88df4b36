// SPDX-License-Identifier: Apache-2.0

//go:build cgo && linux

#include "libcrypto.h"
#include "locked.h"

#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/provider.h>
#include <openssl/rsa.h>
#include <openssl/x509.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * Everything is in the process's own library context. One of our own would have
 * to be freed, and what libcrypto keeps for each thread refers to it until the
 * thread ends, which threads of the Go runtime do when they like. Providers stay
 * loaded for the same reason.
 */
struct pno_lc {
	char *propquery;
};

/* Contexts of one worker for one key: the families by the three hashes. */
struct slot {
	EVP_PKEY_CTX *sign[2][3];
	EVP_PKEY_CTX *verify[2][3];
	EVP_PKEY_CTX *ecdsa;
	EVP_PKEY_CTX *raw;
	EVP_MD_CTX *ed;
};

struct pno_lc_key {
	struct pno_lc *lc;
	EVP_PKEY *pkey;
	int workers;
	struct slot slots[];
};

static void explain(char *err, const char *what)
{
	char reason[100] = "no reason given";
	unsigned long e = ERR_peek_last_error();

	if (e)
		ERR_error_string_n(e, reason, sizeof(reason));
	snprintf(err, PNO_LC_ERR, "%s: %s", what, reason);
	ERR_clear_error();
}

/* What came first is the cause, and its data says which file it is about. */
static void explain_load(char *err)
{
	const char *data = "";
	int flags = 0;
	unsigned long e = ERR_peek_error_all(NULL, NULL, NULL, &data, &flags);
	const char *reason = e ? ERR_reason_error_string(e) : NULL;
	const char *why = flags & ERR_TXT_STRING ? strstr(data, "): ") : NULL; /* filename(…): the loader's words */

	snprintf(err, PNO_LC_ERR, "load the provider: %s", why ? why + 3 : reason ? reason : "no reason given");
	ERR_clear_error();
}

struct pno_lc *pno_lc_new(const char *provider, const char *propquery, size_t heap, char *err)
{
	struct pno_lc *lc = calloc(1, sizeof(*lc));

	if (!lc) {
		snprintf(err, PNO_LC_ERR, "out of memory");
		return NULL;
	}
	lc->propquery = strdup(propquery);
	if (!lc->propquery) {
		snprintf(err, PNO_LC_ERR, "out of memory");
		goto fail;
	}
	if (!pno_secure_heap(heap)) {
		snprintf(err, PNO_LC_ERR, "a heap for keys is there already and is smaller; set heap at the first engine");
		goto fail;
	}
	if (!OSSL_PROVIDER_load(NULL, "default")) {
		explain(err, "load the default provider");
		goto fail;
	}
	ERR_clear_error();
	if (*provider && !OSSL_PROVIDER_load(NULL, provider)) {
		explain_load(err);
		goto fail;
	}
	return lc;
fail:
	pno_lc_free(lc);
	return NULL;
}

void pno_lc_free(struct pno_lc *lc)
{
	free(lc->propquery);
	free(lc);
}

/* Signs and verifies once: both halves of the key belong together, and all that
 * libcrypto derives from it and keeps is there afterwards. */
static int try_key(struct pno_lc *lc, EVP_PKEY *pkey, EVP_PKEY *pub)
{
	const char *hash = EVP_PKEY_is_a(pkey, "ED25519") ? NULL : "SHA256";
	EVP_MD_CTX *s = EVP_MD_CTX_new(), *v = EVP_MD_CTX_new();
	uint8_t sig[PNO_LC_OUT + 64];
	size_t len = sizeof(sig);
	int ok = s && v && EVP_DigestSignInit_ex(s, NULL, hash, NULL, lc->propquery, pkey, NULL) == 1 &&
		 EVP_DigestSign(s, sig, &len, (const uint8_t *)"pno", 3) == 1 &&
		 EVP_DigestVerifyInit_ex(v, NULL, hash, NULL, lc->propquery, pub, NULL) == 1 &&
		 EVP_DigestVerify(v, sig, len, (const uint8_t *)"pno", 3) == 1;

	EVP_MD_CTX_free(s);
	EVP_MD_CTX_free(v);
	return ok;
}

static EVP_PKEY *read_key(struct pno_lc *lc, struct pno_lc_der pkcs8, struct pno_lc_der spki, char *err)
{
	EVP_PKEY *pub = d2i_PUBKEY_ex(NULL, &spki.at, (long)spki.len, NULL, lc->propquery);
	EVP_PKEY *pkey;

	pno_confine();
	pkey = d2i_AutoPrivateKey_ex(NULL, &pkcs8.at, (long)pkcs8.len, NULL, lc->propquery);
	if (!pkey || !pub) {
		explain(err, "read the key");
		EVP_PKEY_free(pkey);
		pkey = NULL;
	} else if (EVP_PKEY_eq(pkey, pub) != 1) {
		explain(err, "it is not the other half of the public key");
		EVP_PKEY_free(pkey);
		pkey = NULL;
	} else if (!try_key(lc, pkey, pub)) {
		explain(err, "a signature with it, and its verification, for trial");
		EVP_PKEY_free(pkey);
		pkey = NULL;
	}
	pno_release();
	EVP_PKEY_free(pub);
	return pkey;
}

struct pno_lc_key *pno_lc_load(struct pno_lc *lc, struct pno_lc_der pkcs8, struct pno_lc_der spki, int workers, char *err)
{
	struct pno_lc_key *key;

	if (!pno_room()) {
		size_t in_use, size;

		pno_heap(&in_use, &size);
		snprintf(err, PNO_LC_ERR,
			 "no room: keys have %zu of %zu KiB of locked memory, operations need the rest; "
			 "set heap of the engine to %zuMiB",
			 in_use >> 10, size >> 10, size >> 19);
		return NULL;
	}
	key = calloc(1, sizeof(*key) + (size_t)workers * sizeof(struct slot));
	if (!key) {
		snprintf(err, PNO_LC_ERR, "out of memory");
		return NULL;
	}
	key->lc = lc;
	key->workers = workers;
	key->pkey = read_key(lc, pkcs8, spki, err);
	if (!key->pkey) {
		free(key);
		return NULL;
	}
	return key;
}

void pno_lc_key_free(struct pno_lc_key *key)
{
	for (int w = 0; w < key->workers; w++) {
		struct slot *s = &key->slots[w];

		for (int f = 0; f < 2; f++) {
			for (int h = 0; h < 3; h++) {
				EVP_PKEY_CTX_free(s->sign[f][h]);
				EVP_PKEY_CTX_free(s->verify[f][h]);
			}
		}
		EVP_PKEY_CTX_free(s->ecdsa);
		EVP_PKEY_CTX_free(s->raw);
		EVP_MD_CTX_free(s->ed);
	}
	EVP_PKEY_free(key->pkey);
	free(key);
}

static const EVP_MD *digest_of(int bits)
{
	return bits == 256 ? EVP_sha256() : bits == 384 ? EVP_sha384() : EVP_sha512();
}

static EVP_PKEY_CTX *new_context(const struct pno_lc_key *key)
{
	return EVP_PKEY_CTX_new_from_pkey(NULL, key->pkey, key->lc->propquery);
}

/* An RSA context for signing or verifying, made at the first call. */
static EVP_PKEY_CTX *rsa_context(const struct pno_lc_key *key, EVP_PKEY_CTX **at, const struct pno_lc_op *op, int verify)
{
	EVP_PKEY_CTX *c = *at;

	if (c)
		return c;
	c = new_context(key);
	if (!c)
		return NULL;
	if ((verify ? EVP_PKEY_verify_init(c) : EVP_PKEY_sign_init(c)) <= 0 ||
	    EVP_PKEY_CTX_set_rsa_padding(c, op->family == PNO_LC_PSS ? RSA_PKCS1_PSS_PADDING : RSA_PKCS1_PADDING) <= 0 ||
	    EVP_PKEY_CTX_set_signature_md(c, digest_of(op->bits)) <= 0 ||
	    (op->family == PNO_LC_PSS && EVP_PKEY_CTX_set_rsa_pss_saltlen(c, RSA_PSS_SALTLEN_DIGEST) <= 0)) {
		EVP_PKEY_CTX_free(c);
		return NULL;
	}
	*at = c;
	return c;
}

static int run_rsa(struct slot *s, struct pno_lc_op *op)
{
	int h = op->bits == 256 ? 0 : op->bits == 384 ? 1 : 2;
	EVP_PKEY_CTX *sign = rsa_context(op->key, &s->sign[op->family][h], op, 0);
	EVP_PKEY_CTX *verify = rsa_context(op->key, &s->verify[op->family][h], op, 1);
	size_t len = sizeof(op->out);

	if (!sign || !verify) {
		explain(op->err, "prepare RSA");
		return -1;
	}
	if (EVP_PKEY_sign(sign, op->out, &len, op->in, op->in_len) <= 0) {
		explain(op->err, "sign with RSA");
		return -1;
	}
	/* A signature with a fault in it gives the key away. */
	if (EVP_PKEY_verify(verify, op->out, len, op->in, op->in_len) != 1) {
		explain(op->err, "the RSA signature does not verify");
		return -1;
	}
	op->out_len = (uint32_t)len;
	return 0;
}

static int run_ecdsa(struct slot *s, struct pno_lc_op *op)
{
	size_t len = sizeof(op->out);

	if (!s->ecdsa) {
		EVP_PKEY_CTX *c = new_context(op->key);

		if (!c || EVP_PKEY_sign_init(c) <= 0) {
			EVP_PKEY_CTX_free(c);
			explain(op->err, "prepare ECDSA");
			return -1;
		}
		s->ecdsa = c;
	}
	if (EVP_PKEY_sign(s->ecdsa, op->out, &len, op->in, op->in_len) <= 0) {
		explain(op->err, "sign with ECDSA");
		return -1;
	}
	op->out_len = (uint32_t)len;
	return 0;
}

static int run_ed25519(struct slot *s, struct pno_lc_op *op)
{
	struct pno_lc *lc = op->key->lc;
	size_t len = sizeof(op->out);

	if (!s->ed)
		s->ed = EVP_MD_CTX_new();
	if (!s->ed || EVP_DigestSignInit_ex(s->ed, NULL, NULL, NULL, lc->propquery, op->key->pkey, NULL) <= 0 ||
	    EVP_DigestSign(s->ed, op->out, &len, op->in, op->in_len) <= 0) {
		explain(op->err, "sign with Ed25519");
		return -1;
	}
	op->out_len = (uint32_t)len;
	return 0;
}

static int run_raw(struct slot *s, struct pno_lc_op *op)
{
	size_t len = sizeof(op->out);

	if (!s->raw) {
		EVP_PKEY_CTX *c = new_context(op->key);

		if (!c || EVP_PKEY_decrypt_init(c) <= 0 || EVP_PKEY_CTX_set_rsa_padding(c, RSA_NO_PADDING) <= 0) {
			EVP_PKEY_CTX_free(c);
			explain(op->err, "prepare decryption");
			return -1;
		}
		s->raw = c;
	}
	if (EVP_PKEY_decrypt(s->raw, op->out, &len, op->in, op->in_len) <= 0) {
		explain(op->err, "decrypt");
		return -1;
	}
	op->out_len = (uint32_t)len;
	return 0;
}

void pno_lc_run(int worker, struct pno_lc_op *ops, int n)
{
	for (int i = 0; i < n; i++) {
		struct pno_lc_op *op = &ops[i];
		struct slot *s = &op->key->slots[worker];

		switch (op->family) {
		case PNO_LC_PKCS1:
		case PNO_LC_PSS:
			op->rc = run_rsa(s, op);
			break;
		case PNO_LC_ECDSA:
			op->rc = run_ecdsa(s, op);
			break;
		case PNO_LC_ED25519:
			op->rc = run_ed25519(s, op);
			break;
		default:
			op->rc = run_raw(s, op);
		}
	}
}

const char *pno_lc_version(void)
{
	return OpenSSL_version(OPENSSL_VERSION_STRING);
}
