/* SPDX-License-Identifier: Apache-2.0 */

/*
 * RSA key exchange of TLS 1.2.
 *
 * libssl asks to decrypt a premaster secret with the padding "TLS", which means:
 * 48 bytes come back whatever the ciphertext held, so that nobody learns
 * whether its padding was right. The worker does just that, if the access rules
 * allow it. No other decryption is offered. To encrypt is local.
 */
#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/params.h>
#include <openssl/prov_ssl.h>
#include <openssl/rsa.h>
#include <stdlib.h>
#include <string.h>

#include "agent.h"
#include "scheme.h"

struct cipher {
	struct pno_prov *prov;
	struct pno_key *key;
	bool tls;          /* the padding is that of a premaster secret */
	unsigned version;  /* that the ClientHello offered */
	EVP_PKEY_CTX *local; /* encrypts */
};

static void *newctx(void *provctx)
{
	struct cipher *c = calloc(1, sizeof *c);

	if (c)
		c->prov = provctx;
	return c;
}

static void freectx(void *ctx)
{
	struct cipher *c = ctx;

	EVP_PKEY_CTX_free(c->local);
	pno_key_free(c->key);
	free(c);
}

static void *dupctx(void *ctx)
{
	struct cipher *from = ctx, *c = calloc(1, sizeof *c);

	if (!c)
		return NULL;
	*c = *from;
	c->local = NULL;
	if (c->key)
		pno_key_up(c->key);
	if (from->local && !(c->local = EVP_PKEY_CTX_dup(from->local))) {
		freectx(c);
		return NULL;
	}
	return c;
}

static int set_params(void *ctx, const OSSL_PARAM params[])
{
	struct cipher *c = ctx;
	const OSSL_PARAM *p;
	int pad;

	if (!params)
		return 1;
	if (c->local)
		return EVP_PKEY_CTX_set_params(c->local, params) > 0;
	p = OSSL_PARAM_locate_const(params, OSSL_ASYM_CIPHER_PARAM_PAD_MODE);
	if (p) {
		c->tls = OSSL_PARAM_get_int(p, &pad) && pad == RSA_PKCS1_WITH_TLS_PADDING;
		if (!c->tls) {
			pno_raise(c->prov, PNO_R_PADDING, "only premaster secrets of TLS are decrypted");
			return 0;
		}
	}
	p = OSSL_PARAM_locate_const(params, OSSL_ASYM_CIPHER_PARAM_TLS_CLIENT_VERSION);
	return !p || OSSL_PARAM_get_uint(p, &c->version);
}

static const OSSL_PARAM *settable(void *ctx, void *provctx)
{
	static const OSSL_PARAM list[] = {
		OSSL_PARAM_int(OSSL_ASYM_CIPHER_PARAM_PAD_MODE, NULL),
		OSSL_PARAM_utf8_string(OSSL_ASYM_CIPHER_PARAM_OAEP_DIGEST, NULL, 0),
		OSSL_PARAM_uint(OSSL_ASYM_CIPHER_PARAM_TLS_CLIENT_VERSION, NULL),
		OSSL_PARAM_uint(OSSL_ASYM_CIPHER_PARAM_TLS_NEGOTIATED_VERSION, NULL),
		OSSL_PARAM_END,
	};

	(void)ctx, (void)provctx;
	return list;
}

static bool set_key(struct cipher *c, void *key)
{
	EVP_PKEY_CTX_free(c->local);
	c->local = NULL;
	if (key) {
		pno_key_free(c->key);
		c->key = pno_key_up(key);
		c->tls = false;
		c->version = 0;
	}
	if (!c->key)
		pno_raise(c->prov, PNO_R_NO_KEY, "init");
	return c->key != NULL;
}

static int decrypt_init(void *ctx, void *key, const OSSL_PARAM params[])
{
	return set_key(ctx, key) && set_params(ctx, params);
}

static int decrypt(void *ctx, unsigned char *out, size_t *len, size_t room, const unsigned char *in, size_t inlen)
{
	struct cipher *c = ctx;
	struct pno_request r = { .input = PNO_INPUT_TLS12_PREMASTER, .scheme = (uint16_t)c->version, .data = in, .len = inlen };
	struct pno_answer answer;
	int ok = 0;

	if (!c->key || !c->tls || !c->version || c->version > UINT16_MAX) {
		pno_raise(c->prov, PNO_R_PADDING, "only premaster secrets of TLS are decrypted");
		return 0;
	}
	if (!out) {
		*len = SSL_MAX_MASTER_KEY_LENGTH;
		return 1;
	}
	if (room < SSL_MAX_MASTER_KEY_LENGTH || inlen != c->key->size) {
		pno_raise(c->prov, PNO_R_BUFFER, "%zu bytes of ciphertext, %zu for the premaster secret", inlen, room);
		return 0;
	}
	if (!pno_ask(c->key, &r, &answer))
		return 0;
	if (answer.len == SSL_MAX_MASTER_KEY_LENGTH) {
		memcpy(out, answer.data, answer.len);
		*len = answer.len;
		ok = 1;
	} else {
		pno_raise(c->prov, PNO_R_AGENT_ANSWER, "a premaster secret of %zu bytes", answer.len);
	}
	OPENSSL_cleanse(&answer, sizeof answer);
	return ok;
}

static int encrypt_init(void *ctx, void *key, const OSSL_PARAM params[])
{
	struct cipher *c = ctx;

	if (!set_key(c, key))
		return 0;
	c->local = EVP_PKEY_CTX_new_from_pkey(c->prov->lib, c->key->pub, NULL);
	return c->local && EVP_PKEY_encrypt_init_ex(c->local, params) > 0;
}

static int encrypt(void *ctx, unsigned char *out, size_t *len, size_t room, const unsigned char *in, size_t inlen)
{
	struct cipher *c = ctx;

	*len = room;
	return c->local && EVP_PKEY_encrypt(c->local, out, len, in, inlen) > 0;
}

static const OSSL_DISPATCH rsa[] = {
	{ OSSL_FUNC_ASYM_CIPHER_NEWCTX, (void (*)(void))newctx },
	{ OSSL_FUNC_ASYM_CIPHER_FREECTX, (void (*)(void))freectx },
	{ OSSL_FUNC_ASYM_CIPHER_DUPCTX, (void (*)(void))dupctx },
	{ OSSL_FUNC_ASYM_CIPHER_DECRYPT_INIT, (void (*)(void))decrypt_init },
	{ OSSL_FUNC_ASYM_CIPHER_DECRYPT, (void (*)(void))decrypt },
	{ OSSL_FUNC_ASYM_CIPHER_ENCRYPT_INIT, (void (*)(void))encrypt_init },
	{ OSSL_FUNC_ASYM_CIPHER_ENCRYPT, (void (*)(void))encrypt },
	{ OSSL_FUNC_ASYM_CIPHER_SET_CTX_PARAMS, (void (*)(void))set_params },
	{ OSSL_FUNC_ASYM_CIPHER_SETTABLE_CTX_PARAMS, (void (*)(void))settable },
	{ 0, NULL },
};

const OSSL_ALGORITHM pno_asym_ciphers[] = {
	{ "RSA:rsaEncryption:1.2.840.113549.1.1.1", "provider=pno", rsa, "remote RSA key exchange" },
	{ NULL, NULL, NULL, NULL },
};
