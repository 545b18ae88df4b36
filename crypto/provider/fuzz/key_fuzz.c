/* SPDX-License-Identifier: Apache-2.0 */

/* What nginx and HAProxy are told to read as a key, through the way that they
 * read it: PEM, both steps of decoding, keymgmt. The first byte of the input says
 * what the rest is: a public key, for which a right reference is made, since no
 * fuzzer finds the SHA-256 in it; a reference; or the PEM text. */
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/provider.h>
#include <openssl/sha.h>
#include <openssl/x509.h>
#include <stdlib.h>
#include <string.h>

#include "protocol.h"

#define MUST(cond) do { if (!(cond)) abort(); } while (0)

enum { PUBLIC_KEY, REFERENCE, TEXT, FORMS };

OSSL_provider_init_fn OSSL_provider_init;
int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static OSSL_LIB_CTX *lib;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc, (void)argv;
	MUST(!setenv("PNO_AGENT", "/nonexistent/agent", 1));
	MUST((lib = OSSL_LIB_CTX_new()) && OSSL_PROVIDER_add_builtin(lib, "pno", OSSL_provider_init));
	MUST(OSSL_PROVIDER_load(lib, "pno") && OSSL_PROVIDER_load(lib, "default"));
	return 0;
}

/* The reference to a public key, as cryptod keys export-public writes it. */
static void write_reference(BIO *b, const uint8_t *spki, size_t n, uint16_t flags)
{
	uint8_t block[sizeof(struct pno_key_ref) + PNO_KEY_SPKI];
	struct pno_key_ref ref = {
		.magic = PNO_KEY_MAGIC, .version = PNO_KEY_VERSION, .flags = flags, .spki_len = (uint32_t)n,
	};

	SHA256(spki, n, ref.key_id);
	memcpy(block, &ref, sizeof ref);
	memcpy(block + sizeof ref, spki, n);
	MUST(PEM_write_bio(b, PNO_KEY_PEM_LABEL, "", block, (long)(sizeof ref + n)) > 0);
}

static void use(EVP_PKEY *key)
{
	unsigned char *der = NULL;
	int len = i2d_PUBKEY(key, &der);

	MUST(EVP_PKEY_get_size(key) > 0 && EVP_PKEY_get_size(key) <= PNO_AGENT_OUTPUT);
	MUST(EVP_PKEY_eq(key, key) == 1);
	MUST(i2d_PrivateKey(key, NULL) <= 0); /* there is none to be had */
	MUST(len > 0);
	OPENSSL_free(der);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	BIO *b = BIO_new(BIO_s_mem());
	EVP_PKEY *key;

	if (!n) {
		BIO_free(b);
		return 0;
	}
	switch (data[0] % FORMS) {
	case PUBLIC_KEY:
		if (n - 1 <= PNO_KEY_SPKI)
			write_reference(b, data + 1, n - 1, data[0] / FORMS % 2);
		break;
	case REFERENCE:
		PEM_write_bio(b, PNO_KEY_PEM_LABEL, "", data + 1, (long)(n - 1));
		break;
	case TEXT:
		BIO_write(b, data + 1, (int)(n - 1));
		break;
	}
	key = PEM_read_bio_PrivateKey_ex(b, NULL, NULL, (void *)"", lib, NULL);
	if (key && EVP_PKEY_get0_provider(key) && !strcmp(OSSL_PROVIDER_get0_name(EVP_PKEY_get0_provider(key)), "pno"))
		use(key);
	EVP_PKEY_free(key);
	BIO_free(b);
	ERR_clear_error();
	return 0;
}
