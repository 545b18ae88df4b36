/* SPDX-License-Identifier: Apache-2.0 */

/*
 * From a PEM block to a key object, in two steps as OpenSSL's own keys take.
 *
 * The first decoder turns the PEM block into data. OpenSSL offers the same input
 * to every decoder of PEM, one after the other, from the same place; and
 * PEM_read_bio_PrivateKey goes on behind what the last one has read. So the
 * decoder reads exactly one block, also one that is not its own: a certificate
 * before the key is skipped like that. As OSSL_STORE, which the openssl command
 * reads files through, passes on nothing but DER between the steps, the key
 * reference is wrapped in the header of a SEQUENCE.
 *
 * The second step is one decoder a type of key, as OpenSSL chooses decoders by
 * the type that the caller wants. They are offered any DER and let pass what is
 * not theirs: that is no error. A reference that is malformed is one, and said
 * once, by the decoder of RSA keys. The object goes up as a pointer inside
 * OSSL_PARAMs; keymgmt's load takes it over and clears the pointer.
 */
#include <openssl/bio.h>
#include <openssl/core_names.h>
#include <openssl/core_object.h>
#include <openssl/err.h>
#include <openssl/params.h>
#include <openssl/pem.h>
#include <string.h>

#include "provider.h"

#define STRUCTURE "pno-key" /* what the data between the steps is called */
#define WRAPPER   4         /* bytes: SEQUENCE, a length of two bytes */
#define LONGEST   (WRAPPER + sizeof(struct pno_key_ref) + PNO_KEY_SPKI)

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

static int decode_pem(void *ctx, OSSL_CORE_BIO *from, int selection, OSSL_CALLBACK *give, void *arg,
		      OSSL_PASSPHRASE_CALLBACK *pw, void *pwarg)
{
	uint8_t wrapped[LONGEST] = { 0x30, 0x82 };
	struct pno_prov *p = ctx;
	int object = OSSL_OBJECT_PKEY;
	OSSL_PARAM params[4];
	uint8_t *data;
	long len;

	(void)selection, (void)pw, (void)pwarg;
	data = read_block(p, from, &len);
	if (!data)
		return 1;
	if ((size_t)len > sizeof wrapped - WRAPPER || (size_t)len < sizeof(struct pno_key_ref)) {
		OPENSSL_free(data);
		pno_raise(p, PNO_R_BAD_KEY_REFERENCE, "%ld bytes", len);
		return 0;
	}
	wrapped[2] = (uint8_t)(len >> 8);
	wrapped[3] = (uint8_t)len;
	memcpy(wrapped + WRAPPER, data, (size_t)len);
	OPENSSL_free(data);
	params[0] = OSSL_PARAM_construct_int(OSSL_OBJECT_PARAM_TYPE, &object);
	params[1] = OSSL_PARAM_construct_utf8_string(OSSL_OBJECT_PARAM_DATA_STRUCTURE, (char *)STRUCTURE, 0);
	params[2] = OSSL_PARAM_construct_octet_string(OSSL_OBJECT_PARAM_DATA, wrapped, WRAPPER + (size_t)len);
	params[3] = OSSL_PARAM_construct_end();
	return give(params, arg);
}

/* The reference inside of the wrapper; 0: this is something else. */
static size_t unwrap(struct pno_prov *p, OSSL_CORE_BIO *from, uint8_t buf[LONGEST])
{
	BIO *in = BIO_new_from_core_bio(p->lib, from);
	uint32_t magic;
	size_t len = 0;

	if (!in)
		return 0;
	if (BIO_read_ex(in, buf, LONGEST, &len) && len > WRAPPER + sizeof magic) {
		memcpy(&magic, buf + WRAPPER, sizeof magic);
		if (buf[0] != 0x30 || buf[1] != 0x82 || magic != PNO_KEY_MAGIC)
			len = 0;
	} else {
		len = 0;
	}
	BIO_free(in);
	return len ? len - WRAPPER : 0;
}

static int decode(struct pno_prov *p, enum pno_type type, OSSL_CORE_BIO *from, OSSL_CALLBACK *give, void *arg)
{
	int object = OSSL_OBJECT_PKEY;
	uint8_t buf[LONGEST];
	struct pno_key *k;
	OSSL_PARAM params[4];
	size_t len;
	int ok;

	ERR_set_mark();
	len = unwrap(p, from, buf);
	ERR_pop_to_mark();
	if (!len)
		return 1;
	ERR_set_mark();
	k = pno_key_parse(p, buf + WRAPPER, len);
	if (!k && type == PNO_KEY_RSA) {
		ERR_clear_last_mark();
		return 0;
	}
	ERR_pop_to_mark();
	if (!k || k->type != type) {
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

#define DISPATCH(name)                                                                       \
	static const OSSL_DISPATCH name##_decoder[] = {                                      \
		{ OSSL_FUNC_DECODER_NEWCTX, (void (*)(void))newctx },                        \
		{ OSSL_FUNC_DECODER_FREECTX, (void (*)(void))freectx },                      \
		{ OSSL_FUNC_DECODER_DOES_SELECTION, (void (*)(void))does_selection },        \
		{ OSSL_FUNC_DECODER_DECODE, (void (*)(void))decode_##name },                 \
		{ 0, NULL },                                                                 \
	}

#define DECODER(name, type)                                                                          \
	static int decode_##name(void *ctx, OSSL_CORE_BIO *from, int selection, OSSL_CALLBACK *give, \
				 void *arg, OSSL_PASSPHRASE_CALLBACK *pw, void *pwarg)               \
	{                                                                                            \
		(void)selection, (void)pw, (void)pwarg;                                              \
		return decode(ctx, type, from, give, arg);                                           \
	}                                                                                            \
	DISPATCH(name)

DISPATCH(pem);
DECODER(rsa, PNO_KEY_RSA);
DECODER(ec, PNO_KEY_EC);
DECODER(ed25519, PNO_KEY_ED25519);

#define DER "provider=pno,input=der,structure=" STRUCTURE

const OSSL_ALGORITHM pno_decoders[] = {
	{ "DER", "provider=pno,input=pem", pem_decoder, "PNO reference to a key" },
	{ "RSA:rsaEncryption:1.2.840.113549.1.1.1", DER, rsa_decoder, "PNO reference to an RSA key" },
	{ "EC:id-ecPublicKey:1.2.840.10045.2.1", DER, ec_decoder, "PNO reference to an EC key" },
	{ "ED25519:1.3.101.112", DER, ed25519_decoder, "PNO reference to an Ed25519 key" },
	{ NULL, NULL, NULL, NULL },
};
