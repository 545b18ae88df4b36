/* SPDX-License-Identifier: Apache-2.0 */

/*
 * From a PEM block to a key object.
 *
 * OpenSSL offers the same input to every decoder of PEM, one after the other,
 * from the same place; and PEM_read_bio_PrivateKey goes on behind what the last
 * one has read. So a decoder reads exactly one block, also one that is not its
 * own: a certificate before the key is skipped like that. To find nothing is no
 * error; a block with our label that is malformed is one, and said once, by the
 * decoder of RSA keys.
 *
 * There is one decoder a type of key, as OpenSSL chooses decoders by the type
 * that the caller wants. The object goes up as a pointer inside OSSL_PARAMs;
 * keymgmt's load takes it over and clears the pointer.
 */
#include <openssl/bio.h>
#include <openssl/core_names.h>
#include <openssl/core_object.h>
#include <openssl/err.h>
#include <openssl/params.h>
#include <openssl/pem.h>
#include <string.h>

#include "provider.h"

static void *newctx(void *provctx)
{
	return provctx;
}

static void freectx(void *ctx)
{
	(void)ctx;
}

static int does_selection(void *provctx, int selection)
{
	(void)provctx;
	return !selection || selection & OSSL_KEYMGMT_SELECT_PRIVATE_KEY;
}

/* The contents of the next PEM block if it has our label. */
static uint8_t *read_block(struct pno_prov *p, OSSL_CORE_BIO *from, long *len)
{
	BIO *in = BIO_new_from_core_bio(p->lib, from);
	char *name = NULL, *header = NULL;
	unsigned char *data = NULL;

	if (!in)
		return NULL;
	ERR_set_mark();
	if (PEM_read_bio(in, &name, &header, &data, len) && (strcmp(name, PNO_KEY_PEM_LABEL) || *header)) {
		OPENSSL_free(data);
		data = NULL;
	}
	ERR_pop_to_mark();
	OPENSSL_free(name);
	OPENSSL_free(header);
	BIO_free(in);
	return data;
}

static int decode(struct pno_prov *p, enum pno_type type, OSSL_CORE_BIO *from, OSSL_CALLBACK *give, void *arg)
{
	int object = OSSL_OBJECT_PKEY;
	struct pno_key *k;
	OSSL_PARAM params[4];
	uint8_t *data;
	long len;
	int ok;

	data = read_block(p, from, &len);
	if (!data)
		return 1;
	if (type != PNO_RSA)
		ERR_set_mark();
	k = pno_key_parse(p, data, (size_t)len);
	if (type != PNO_RSA)
		ERR_pop_to_mark();
	OPENSSL_free(data);
	if (!k)
		return type != PNO_RSA;
	if (k->type != type) {
		pno_key_free(k);
		return 1;
	}
	params[0] = OSSL_PARAM_construct_int(OSSL_OBJECT_PARAM_TYPE, &object);
	params[1] = OSSL_PARAM_construct_utf8_string(OSSL_OBJECT_PARAM_DATA_TYPE, (char *)pno_type_name[type], 0);
	params[2] = OSSL_PARAM_construct_octet_string(OSSL_OBJECT_PARAM_REFERENCE, &k, sizeof k);
	params[3] = OSSL_PARAM_construct_end();
	ok = give(params, arg);
	pno_key_free(k); /* NULL if it was taken over */
	return ok;
}

#define DECODER(name, type)                                                                              \
	static int decode_##name(void *ctx, OSSL_CORE_BIO *from, int selection, OSSL_CALLBACK *give,     \
				 void *arg, OSSL_PASSPHRASE_CALLBACK *pw, void *pwarg)                   \
	{                                                                                                \
		(void)selection, (void)pw, (void)pwarg;                                                  \
		return decode(ctx, type, from, give, arg);                                               \
	}                                                                                                \
	static const OSSL_DISPATCH name##_decoder[] = {                                                  \
		{ OSSL_FUNC_DECODER_NEWCTX, (void (*)(void))newctx },                                    \
		{ OSSL_FUNC_DECODER_FREECTX, (void (*)(void))freectx },                                  \
		{ OSSL_FUNC_DECODER_DOES_SELECTION, (void (*)(void))does_selection },                    \
		{ OSSL_FUNC_DECODER_DECODE, (void (*)(void))decode_##name },                             \
		{ 0, NULL },                                                                             \
	}

DECODER(rsa, PNO_RSA);
DECODER(ec, PNO_EC);
DECODER(ed25519, PNO_ED25519);

const OSSL_ALGORITHM pno_decoders[] = {
	{ "RSA:rsaEncryption:1.2.840.113549.1.1.1", "provider=pno,input=pem", rsa_decoder, "PNO reference to an RSA key" },
	{ "EC:id-ecPublicKey:1.2.840.10045.2.1", "provider=pno,input=pem", ec_decoder, "PNO reference to an EC key" },
	{ "ED25519:1.3.101.112", "provider=pno,input=pem", ed25519_decoder, "PNO reference to an Ed25519 key" },
	{ NULL, NULL, NULL, NULL },
};
