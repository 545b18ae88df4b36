/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What OpenSSL asks about a key.
 *
 * The key says that it has a private half, and refuses every export that would
 * include it, without an error on the stack: OpenSSL tries this in the normal
 * course of each private operation. The public half is exported by the default
 * provider's own code, and parameters are those that it knows.
 */
#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/params.h>
#include <string.h>

#include "provider.h"

#define PUBLIC (OSSL_KEYMGMT_SELECT_PUBLIC_KEY | OSSL_KEYMGMT_SELECT_ALL_PARAMETERS)

static void *load(const void *reference, size_t size)
{
	struct pno_key *k, **at = (struct pno_key **)reference;

	if (!reference || size != sizeof k)
		return NULL;
	k = *at;
	*at = NULL;
	return k;
}

static void release(void *key)
{
	pno_key_free(key);
}

static void *dup(const void *key, int selection)
{
	(void)selection;
	return pno_key_up((struct pno_key *)key);
}

static int has(const void *key, int selection)
{
	(void)selection;
	return key != NULL;
}

/* Keys of the same id are the same. */
static int match(const void *a, const void *b, int selection)
{
	const struct pno_key *ka = a, *kb = b;

	if (!(selection & OSSL_KEYMGMT_SELECT_KEYPAIR))
		return EVP_PKEY_parameters_eq(ka->pub, kb->pub) == 1;
	return !memcmp(ka->id, kb->id, sizeof ka->id);
}

static int validate(const void *key, int selection, int checktype)
{
	(void)key, (void)selection, (void)checktype;
	return 1; /* checked when it was made */
}

static int export(void *key, int selection, OSSL_CALLBACK *give, void *arg)
{
	const struct pno_key *k = key;
	OSSL_PARAM *params;
	int ok;

	if (selection & OSSL_KEYMGMT_SELECT_PRIVATE_KEY ||
	    EVP_PKEY_todata(k->pub, selection & PUBLIC, &params) != 1)
		return 0;
	ok = give(params, arg);
	OSSL_PARAM_free(params);
	return ok;
}

static const OSSL_PARAM rsa_public[] = {
	OSSL_PARAM_BN(OSSL_PKEY_PARAM_RSA_N, NULL, 0),
	OSSL_PARAM_BN(OSSL_PKEY_PARAM_RSA_E, NULL, 0),
	OSSL_PARAM_END,
};

static const OSSL_PARAM ec_public[] = {
	OSSL_PARAM_utf8_string(OSSL_PKEY_PARAM_GROUP_NAME, NULL, 0),
	OSSL_PARAM_octet_string(OSSL_PKEY_PARAM_PUB_KEY, NULL, 0),
	OSSL_PARAM_END,
};

static const OSSL_PARAM ed25519_public[] = {
	OSSL_PARAM_octet_string(OSSL_PKEY_PARAM_PUB_KEY, NULL, 0),
	OSSL_PARAM_END,
};

static int get_params(void *key, OSSL_PARAM params[])
{
	const struct pno_key *k = key;

	return EVP_PKEY_get_params(k->pub, params);
}

/* The list that programs look at; get_params knows whatever the default
 * provider does. */
static const OSSL_PARAM *gettable(void *provctx)
{
	static const OSSL_PARAM list[] = {
		OSSL_PARAM_int(OSSL_PKEY_PARAM_BITS, NULL),
		OSSL_PARAM_int(OSSL_PKEY_PARAM_SECURITY_BITS, NULL),
		OSSL_PARAM_int(OSSL_PKEY_PARAM_MAX_SIZE, NULL),
		OSSL_PARAM_utf8_string(OSSL_PKEY_PARAM_DEFAULT_DIGEST, NULL, 0),
		OSSL_PARAM_utf8_string(OSSL_PKEY_PARAM_MANDATORY_DIGEST, NULL, 0),
		OSSL_PARAM_utf8_string(OSSL_PKEY_PARAM_GROUP_NAME, NULL, 0),
		OSSL_PARAM_octet_string(OSSL_PKEY_PARAM_ENCODED_PUBLIC_KEY, NULL, 0),
		OSSL_PARAM_octet_string(OSSL_PKEY_PARAM_PUB_KEY, NULL, 0),
		OSSL_PARAM_BN(OSSL_PKEY_PARAM_RSA_N, NULL, 0),
		OSSL_PARAM_BN(OSSL_PKEY_PARAM_RSA_E, NULL, 0),
		OSSL_PARAM_END,
	};

	(void)provctx;
	return list;
}

static const char *ec_operation(int operation)
{
	return operation == OSSL_OP_SIGNATURE ? "ECDSA" : operation == OSSL_OP_KEYEXCH ? "ECDH" : "EC";
}

#define EXPORT_TYPES(name)                                                      \
	static const OSSL_PARAM *name##_export_types(int selection)             \
	{                                                                       \
		return selection & OSSL_KEYMGMT_SELECT_PRIVATE_KEY ? NULL : name##_public; \
	}

EXPORT_TYPES(rsa)
EXPORT_TYPES(ec)
EXPORT_TYPES(ed25519)

#define COMMON(name)                                                                  \
	{ OSSL_FUNC_KEYMGMT_LOAD, (void (*)(void))load },                             \
	{ OSSL_FUNC_KEYMGMT_FREE, (void (*)(void))release },                          \
	{ OSSL_FUNC_KEYMGMT_DUP, (void (*)(void))dup },                               \
	{ OSSL_FUNC_KEYMGMT_HAS, (void (*)(void))has },                               \
	{ OSSL_FUNC_KEYMGMT_MATCH, (void (*)(void))match },                           \
	{ OSSL_FUNC_KEYMGMT_VALIDATE, (void (*)(void))validate },                     \
	{ OSSL_FUNC_KEYMGMT_EXPORT, (void (*)(void))export },                         \
	{ OSSL_FUNC_KEYMGMT_EXPORT_TYPES, (void (*)(void))name##_export_types },      \
	{ OSSL_FUNC_KEYMGMT_GET_PARAMS, (void (*)(void))get_params },                 \
	{ OSSL_FUNC_KEYMGMT_GETTABLE_PARAMS, (void (*)(void))gettable }

static const OSSL_DISPATCH rsa_keymgmt[] = { COMMON(rsa), { 0, NULL } };
static const OSSL_DISPATCH ed25519_keymgmt[] = { COMMON(ed25519), { 0, NULL } };
static const OSSL_DISPATCH ec_keymgmt[] = {
	COMMON(ec),
	{ OSSL_FUNC_KEYMGMT_QUERY_OPERATION_NAME, (void (*)(void))ec_operation },
	{ 0, NULL },
};

const OSSL_ALGORITHM pno_keymgmts[] = {
	{ "RSA:rsaEncryption:1.2.840.113549.1.1.1", "provider=pno", rsa_keymgmt, "remote RSA keys" },
	{ "EC:id-ecPublicKey:1.2.840.10045.2.1", "provider=pno", ec_keymgmt, "remote EC keys" },
	{ "ED25519:1.3.101.112", "provider=pno", ed25519_keymgmt, "remote Ed25519 keys" },
	{ NULL, NULL, NULL, NULL },
};
