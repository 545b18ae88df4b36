/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Signatures.
 *
 * A context holds a key, a padding and a digest, for either direction. To sign
 * is remote: the digest is made here and goes to the agent (scheme.c). To
 * verify is local: the operation, with every parameter, is passed to the
 * default provider on the public half, through a context of its own inside
 * this one. Only one of the two is used between one init and the next.
 *
 * What the agent has no scheme for is refused when it is set, not when it is
 * signed. A salt length that nobody set is the digest's, as in TLS; "auto" too.
 */
#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/params.h>
#include <openssl/rsa.h>
#include <stdlib.h>
#include <string.h>

#include "scheme.h"

struct sig {
	struct pno_prov *prov;
	struct pno_key *key;
	bool pss;
	enum pno_hash hash; /* PNO_NO_HASH: not set */
	EVP_MD_CTX *md;     /* what is signed in pieces, so far */

	EVP_MD_CTX *local_md;    /* verifies messages */
	EVP_PKEY_CTX *local;     /* verifies: of local_md, or our own */
};

static void *newctx(void *provctx, const char *propq)
{
	struct sig *s = calloc(1, sizeof *s);

	(void)propq;
	if (!s)
		return NULL;
	s->prov = provctx;
	s->hash = PNO_NO_HASH;
	return s;
}

static void clear(struct sig *s)
{
	if (!s->local_md)
		EVP_PKEY_CTX_free(s->local);
	EVP_MD_CTX_free(s->local_md);
	EVP_MD_CTX_free(s->md);
	s->local_md = s->md = NULL;
	s->local = NULL;
}

static void freectx(void *ctx)
{
	struct sig *s = ctx;

	clear(s);
	pno_key_free(s->key);
	free(s);
}

static bool copy_md(EVP_MD_CTX **to, const EVP_MD_CTX *from)
{
	if (!from)
		return true;
	*to = EVP_MD_CTX_new();
	return *to && EVP_MD_CTX_copy_ex(*to, from);
}

static void *dupctx(void *ctx)
{
	struct sig *from = ctx, *s = calloc(1, sizeof *s);

	if (!s)
		return NULL;
	*s = *from;
	s->md = s->local_md = NULL;
	s->local = NULL;
	if (s->key)
		pno_key_up(s->key);
	if (!copy_md(&s->md, from->md) || !copy_md(&s->local_md, from->local_md)) {
		freectx(s);
		return NULL;
	}
	if (s->local_md)
		s->local = EVP_MD_CTX_get_pkey_ctx(s->local_md);
	else if (from->local && !(s->local = EVP_PKEY_CTX_dup(from->local))) {
		freectx(s);
		return NULL;
	}
	return s;
}

/* The key of the operation; a later init may leave it out. */
static bool set_key(struct sig *s, void *key)
{
	clear(s);
	if (key) {
		pno_key_free(s->key);
		s->key = pno_key_up(key);
		s->pss = false;
		s->hash = PNO_NO_HASH;
	}
	if (!s->key)
		pno_raise(s->prov, PNO_R_NO_KEY, "init");
	return s->key != NULL;
}

static bool set_hash(struct sig *s, const char *name)
{
	enum pno_hash h = pno_hash_named(s->prov, name);

	if (s->md && h != s->hash) {
		pno_raise(s->prov, PNO_R_DIGEST, "%s, in the middle of a message", name);
		return false;
	}
	s->hash = h; /* none, after a failure: nothing is signed with another than was asked for */
	if (s->hash == PNO_NO_HASH)
		pno_raise(s->prov, PNO_R_DIGEST, "%s; there are SHA256, SHA384 and SHA512", name);
	return s->hash != PNO_NO_HASH;
}

static bool set_padding(struct sig *s, const OSSL_PARAM *p)
{
	const char *name = NULL;
	int pad = 0;

	if (p->data_type == OSSL_PARAM_UTF8_STRING ? !OSSL_PARAM_get_utf8_string_ptr(p, &name)
						   : !OSSL_PARAM_get_int(p, &pad))
		return false;
	s->pss = pad == RSA_PKCS1_PSS_PADDING || (name && !strcmp(name, OSSL_PKEY_RSA_PAD_MODE_PSS));
	if (s->key && s->key->type == PNO_KEY_RSA &&
	    (s->pss || pad == RSA_PKCS1_PADDING || (name && !strcmp(name, OSSL_PKEY_RSA_PAD_MODE_PKCSV15))))
		return true;
	pno_raise(s->prov, PNO_R_PADDING, "%s; there are pkcs1 and pss, with RSA", name ? name : "by number");
	return false;
}

static bool set_salt_length(struct sig *s, const OSSL_PARAM *p)
{
	const char *name = NULL;
	int len = 0;

	if (p->data_type == OSSL_PARAM_UTF8_STRING) {
		if (!OSSL_PARAM_get_utf8_string_ptr(p, &name))
			return false;
		if (!strcmp(name, OSSL_PKEY_RSA_PSS_SALT_LEN_DIGEST) || !strcmp(name, OSSL_PKEY_RSA_PSS_SALT_LEN_AUTO))
			return true;
		len = atoi(name);
	} else if (!OSSL_PARAM_get_int(p, &len)) {
		return false;
	}
	if (len == RSA_PSS_SALTLEN_DIGEST || len == RSA_PSS_SALTLEN_AUTO)
		return true;
	if (len > 0 && s->hash != PNO_NO_HASH && (size_t)len == pno_hash_size(s->prov, s->hash))
		return true;
	pno_raise(s->prov, PNO_R_SALT_LENGTH, "%s; it is always that of the digest", name ? name : "by number");
	return false;
}

/* MGF1 with another hash than the signature's is in no scheme. */
static bool set_mgf1(struct sig *s, const OSSL_PARAM *p)
{
	const char *name;

	if (!OSSL_PARAM_get_utf8_string_ptr(p, &name))
		return false;
	if (s->hash != PNO_NO_HASH && pno_hash_named(s->prov, name) == s->hash)
		return true;
	pno_raise(s->prov, PNO_R_DIGEST, "MGF1 with %s; it is always that of the signature", name);
	return false;
}

static int set_params(void *ctx, const OSSL_PARAM params[])
{
	struct sig *s = ctx;
	const OSSL_PARAM *p;
	const char *name;

	if (!params)
		return 1;
	if (s->local)
		return EVP_PKEY_CTX_set_params(s->local, params) > 0;
	p = OSSL_PARAM_locate_const(params, OSSL_SIGNATURE_PARAM_DIGEST);
	if (p && (!OSSL_PARAM_get_utf8_string_ptr(p, &name) || !set_hash(s, name)))
		return 0;
	p = OSSL_PARAM_locate_const(params, OSSL_SIGNATURE_PARAM_PAD_MODE);
	if (p && !set_padding(s, p))
		return 0;
	p = OSSL_PARAM_locate_const(params, OSSL_SIGNATURE_PARAM_PSS_SALTLEN);
	if (p && !set_salt_length(s, p))
		return 0;
	p = OSSL_PARAM_locate_const(params, OSSL_SIGNATURE_PARAM_MGF1_DIGEST);
	return !p || set_mgf1(s, p);
}

static const OSSL_PARAM *settable(void *ctx, void *provctx)
{
	static const OSSL_PARAM list[] = {
		OSSL_PARAM_utf8_string(OSSL_SIGNATURE_PARAM_DIGEST, NULL, 0),
		OSSL_PARAM_utf8_string(OSSL_SIGNATURE_PARAM_PROPERTIES, NULL, 0),
		OSSL_PARAM_utf8_string(OSSL_SIGNATURE_PARAM_PAD_MODE, NULL, 0),
		OSSL_PARAM_utf8_string(OSSL_SIGNATURE_PARAM_PSS_SALTLEN, NULL, 0),
		OSSL_PARAM_utf8_string(OSSL_SIGNATURE_PARAM_MGF1_DIGEST, NULL, 0),
		OSSL_PARAM_utf8_string(OSSL_SIGNATURE_PARAM_MGF1_PROPERTIES, NULL, 0),
		OSSL_PARAM_END,
	};

	(void)ctx, (void)provctx;
	return list;
}

static const char *hash_name(const struct sig *s)
{
	return s->hash == PNO_NO_HASH ? "" : EVP_MD_get0_name(s->prov->md[s->hash]);
}

static int get_params(void *ctx, OSSL_PARAM params[])
{
	struct sig *s = ctx;
	OSSL_PARAM *p;

	if (!params)
		return 1;
	if (s->local)
		return EVP_PKEY_CTX_get_params(s->local, params) > 0;
	p = OSSL_PARAM_locate(params, OSSL_SIGNATURE_PARAM_ALGORITHM_ID);
	if (p) {
		size_t len;
		const uint8_t *id = s->key ? pno_algorithm_id(s->key->type, s->pss, s->hash, &len) : NULL;

		if (!id || !OSSL_PARAM_set_octet_string(p, id, len))
			return 0;
	}
	p = OSSL_PARAM_locate(params, OSSL_SIGNATURE_PARAM_DIGEST);
	if (p && !OSSL_PARAM_set_utf8_string(p, hash_name(s)))
		return 0;
	p = OSSL_PARAM_locate(params, OSSL_SIGNATURE_PARAM_MGF1_DIGEST);
	if (p && !OSSL_PARAM_set_utf8_string(p, hash_name(s)))
		return 0;
	p = OSSL_PARAM_locate(params, OSSL_SIGNATURE_PARAM_PAD_MODE);
	if (p && !(p->data_type == OSSL_PARAM_UTF8_STRING
			   ? OSSL_PARAM_set_utf8_string(p, s->pss ? OSSL_PKEY_RSA_PAD_MODE_PSS : OSSL_PKEY_RSA_PAD_MODE_PKCSV15)
			   : OSSL_PARAM_set_int(p, s->pss ? RSA_PKCS1_PSS_PADDING : RSA_PKCS1_PADDING)))
		return 0;
	p = OSSL_PARAM_locate(params, OSSL_SIGNATURE_PARAM_PSS_SALTLEN);
	return !p || (p->data_type == OSSL_PARAM_UTF8_STRING
			      ? OSSL_PARAM_set_utf8_string(p, OSSL_PKEY_RSA_PSS_SALT_LEN_DIGEST)
			      : OSSL_PARAM_set_int(p, RSA_PSS_SALTLEN_DIGEST));
}

static const OSSL_PARAM *gettable(void *ctx, void *provctx)
{
	static const OSSL_PARAM list[] = {
		OSSL_PARAM_octet_string(OSSL_SIGNATURE_PARAM_ALGORITHM_ID, NULL, 0),
		OSSL_PARAM_utf8_string(OSSL_SIGNATURE_PARAM_DIGEST, NULL, 0),
		OSSL_PARAM_utf8_string(OSSL_SIGNATURE_PARAM_PAD_MODE, NULL, 0),
		OSSL_PARAM_utf8_string(OSSL_SIGNATURE_PARAM_PSS_SALTLEN, NULL, 0),
		OSSL_PARAM_utf8_string(OSSL_SIGNATURE_PARAM_MGF1_DIGEST, NULL, 0),
		OSSL_PARAM_END,
	};

	(void)ctx, (void)provctx;
	return list;
}

static int sign_init(void *ctx, void *key, const OSSL_PARAM params[])
{
	struct sig *s = ctx;

	return set_key(s, key) && set_params(s, params);
}

/* Signs a digest that the caller made. */
static int sign(void *ctx, unsigned char *out, size_t *len, size_t room, const unsigned char *tbs, size_t tbslen)
{
	struct sig *s = ctx;
	enum pno_hash h = s->hash;

	if (!s->key) {
		pno_raise(s->prov, PNO_R_NO_KEY, "sign");
		return 0;
	}
	if (!out) {
		*len = s->key->size;
		return 1;
	}
	if (h == PNO_NO_HASH && s->key->type == PNO_KEY_EC)
		h = pno_hash_of_size(tbslen);
	if (h == PNO_NO_HASH || tbslen != pno_hash_size(s->prov, h)) {
		pno_raise(s->prov, PNO_R_INPUT, "%zu bytes that are no digest; raw RSA is not offered", tbslen);
		return 0;
	}
	return pno_sign_digest(s->key, s->pss, h, tbs, out, len, room);
}

static int digest_sign_init(void *ctx, const char *digest, void *key, const OSSL_PARAM params[])
{
	struct sig *s = ctx;

	if (!set_key(s, key))
		return 0;
	if (s->key->type == PNO_KEY_ED25519) {
		if (digest && *digest) {
			pno_raise(s->prov, PNO_R_DIGEST, "%s; Ed25519 has none", digest);
			return 0;
		}
	} else if (!set_hash(s, digest && *digest ? digest : "SHA256")) {
		return 0;
	}
	return set_params(s, params);
}

static int digest_sign_update(void *ctx, const unsigned char *data, size_t len)
{
	struct sig *s = ctx;

	if (!s->key || s->hash == PNO_NO_HASH || s->key->tls13_only) {
		pno_raise(s->prov, s->key && s->key->tls13_only ? PNO_R_TLS13_ONLY : PNO_R_INPUT, "a message in pieces");
		return 0;
	}
	if (!s->md) {
		s->md = EVP_MD_CTX_new();
		if (!s->md || !EVP_DigestInit_ex2(s->md, s->prov->md[s->hash], NULL))
			return 0;
	}
	return EVP_DigestUpdate(s->md, data, len);
}

static int digest_sign_final(void *ctx, unsigned char *out, size_t *len, size_t room)
{
	struct sig *s = ctx;
	uint8_t digest[EVP_MAX_MD_SIZE];

	if (!s->key) {
		pno_raise(s->prov, PNO_R_NO_KEY, "sign");
		return 0;
	}
	if (!out) {
		*len = s->key->size;
		return 1;
	}
	/* Nothing came: the message is empty. */
	if ((!s->md && !digest_sign_update(s, NULL, 0)) || !EVP_DigestFinal_ex(s->md, digest, NULL))
		return 0;
	return pno_sign_digest(s->key, s->pss, s->hash, digest, out, len, room);
}

static int digest_sign(void *ctx, unsigned char *out, size_t *len, size_t room, const unsigned char *tbs, size_t tbslen)
{
	struct sig *s = ctx;

	if (!s->key) {
		pno_raise(s->prov, PNO_R_NO_KEY, "sign");
		return 0;
	}
	if (!out) {
		*len = s->key->size;
		return 1;
	}
	return pno_sign_message(s->key, s->pss, s->hash, tbs, tbslen, out, len, room);
}

static int verify_init(void *ctx, void *key, const OSSL_PARAM params[])
{
	struct sig *s = ctx;

	if (!set_key(s, key))
		return 0;
	s->local = EVP_PKEY_CTX_new_from_pkey(s->prov->lib, s->key->pub, NULL);
	return s->local && EVP_PKEY_verify_init_ex(s->local, params) > 0;
}

static int verify(void *ctx, const unsigned char *sig, size_t len, const unsigned char *tbs, size_t tbslen)
{
	struct sig *s = ctx;

	return s->local && EVP_PKEY_verify(s->local, sig, len, tbs, tbslen) == 1;
}

static int digest_verify_init(void *ctx, const char *digest, void *key, const OSSL_PARAM params[])
{
	struct sig *s = ctx;

	if (!set_key(s, key))
		return 0;
	s->local_md = EVP_MD_CTX_new();
	return s->local_md && EVP_DigestVerifyInit_ex(s->local_md, &s->local, digest && *digest ? digest : NULL,
						      s->prov->lib, NULL, s->key->pub, params) == 1;
}

static int digest_verify_update(void *ctx, const unsigned char *data, size_t len)
{
	struct sig *s = ctx;

	return s->local_md && EVP_DigestVerifyUpdate(s->local_md, data, len) == 1;
}

static int digest_verify_final(void *ctx, const unsigned char *sig, size_t len)
{
	struct sig *s = ctx;

	return s->local_md && EVP_DigestVerifyFinal(s->local_md, sig, len) == 1;
}

static int digest_verify(void *ctx, const unsigned char *sig, size_t len, const unsigned char *tbs, size_t tbslen)
{
	struct sig *s = ctx;

	return s->local_md && EVP_DigestVerify(s->local_md, sig, len, tbs, tbslen) == 1;
}

#define COMMON                                                                        \
	{ OSSL_FUNC_SIGNATURE_NEWCTX, (void (*)(void))newctx },                       \
	{ OSSL_FUNC_SIGNATURE_FREECTX, (void (*)(void))freectx },                     \
	{ OSSL_FUNC_SIGNATURE_DUPCTX, (void (*)(void))dupctx },                       \
	{ OSSL_FUNC_SIGNATURE_DIGEST_SIGN_INIT, (void (*)(void))digest_sign_init },   \
	{ OSSL_FUNC_SIGNATURE_DIGEST_SIGN, (void (*)(void))digest_sign },             \
	{ OSSL_FUNC_SIGNATURE_DIGEST_VERIFY_INIT, (void (*)(void))digest_verify_init }, \
	{ OSSL_FUNC_SIGNATURE_DIGEST_VERIFY, (void (*)(void))digest_verify },         \
	{ OSSL_FUNC_SIGNATURE_GET_CTX_PARAMS, (void (*)(void))get_params },           \
	{ OSSL_FUNC_SIGNATURE_GETTABLE_CTX_PARAMS, (void (*)(void))gettable }

static const OSSL_DISPATCH hashed[] = {
	COMMON,
	{ OSSL_FUNC_SIGNATURE_SIGN_INIT, (void (*)(void))sign_init },
	{ OSSL_FUNC_SIGNATURE_SIGN, (void (*)(void))sign },
	{ OSSL_FUNC_SIGNATURE_VERIFY_INIT, (void (*)(void))verify_init },
	{ OSSL_FUNC_SIGNATURE_VERIFY, (void (*)(void))verify },
	{ OSSL_FUNC_SIGNATURE_DIGEST_SIGN_UPDATE, (void (*)(void))digest_sign_update },
	{ OSSL_FUNC_SIGNATURE_DIGEST_SIGN_FINAL, (void (*)(void))digest_sign_final },
	{ OSSL_FUNC_SIGNATURE_DIGEST_VERIFY_UPDATE, (void (*)(void))digest_verify_update },
	{ OSSL_FUNC_SIGNATURE_DIGEST_VERIFY_FINAL, (void (*)(void))digest_verify_final },
	{ OSSL_FUNC_SIGNATURE_SET_CTX_PARAMS, (void (*)(void))set_params },
	{ OSSL_FUNC_SIGNATURE_SETTABLE_CTX_PARAMS, (void (*)(void))settable },
	{ 0, NULL },
};

/* Ed25519 takes a message at once, and has nothing to set. */
static const OSSL_DISPATCH whole[] = { COMMON, { 0, NULL } };

const OSSL_ALGORITHM pno_signatures[] = {
	{ "RSA:rsaEncryption:1.2.840.113549.1.1.1", "provider=pno", hashed, "remote RSA signatures" },
	{ "ECDSA", "provider=pno", hashed, "remote ECDSA signatures" },
	{ "ED25519:1.3.101.112", "provider=pno", whole, "remote Ed25519 signatures" },
	{ NULL, NULL, NULL, NULL },
};
