/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Key objects.
 *
 * A key reference is struct pno_key_ref with the SubjectPublicKeyInfo behind
 * it. It comes from a file and is checked whole: sizes, that the id is the hash
 * of the public key, and that the key is of a type that schemes exist for.
 * After that the object is constant; OpenSSL shares it between threads and
 * "duplicates" it by counting.
 */
#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/x509.h>
#include <stdlib.h>
#include <string.h>

#include "agent.h"
#include "provider.h"

const char *const pno_type_name[PNO_KEY_TYPES] = { "RSA", "EC", "ED25519" };

static EVP_PKEY *public_half(struct pno_prov *p, const uint8_t *spki, size_t len)
{
	const unsigned char *at = spki;
	EVP_PKEY *pub;

	ERR_set_mark();
	pub = d2i_PUBKEY_ex(NULL, &at, (long)len, p->lib, NULL);
	ERR_pop_to_mark();
	if (pub && at != spki + len) {
		EVP_PKEY_free(pub);
		return NULL;
	}
	return pub;
}

static bool known_curve(const EVP_PKEY *pub)
{
	char group[64];

	return EVP_PKEY_get_group_name(pub, group, sizeof group, NULL) == 1 &&
	       (!strcmp(group, "prime256v1") || !strcmp(group, "secp384r1") || !strcmp(group, "secp521r1"));
}

static bool set_type(struct pno_key *k)
{
	int size = EVP_PKEY_get_size(k->pub);

	if (size <= 0 || size > PNO_AGENT_OUTPUT)
		return false;
	k->size = (size_t)size;
	for (k->type = 0; k->type < PNO_KEY_TYPES; k->type++)
		if (EVP_PKEY_is_a(k->pub, pno_type_name[k->type]))
			break;
	if (k->type == PNO_KEY_RSA)
		return EVP_PKEY_get_bits(k->pub) >= 1024;
	return k->type == PNO_KEY_ED25519 || (k->type == PNO_KEY_EC && known_curve(k->pub));
}

struct pno_key *pno_key_parse(struct pno_prov *p, const uint8_t *der, size_t len)
{
	struct pno_key_ref ref;
	const uint8_t *spki = der + sizeof ref;
	uint8_t id[PNO_KEY_ID_LEN];
	struct pno_key *k;

	if (len <= sizeof ref || len > sizeof ref + PNO_KEY_SPKI) {
		pno_raise(p, PNO_R_BAD_KEY_REFERENCE, "%zu bytes", len);
		return NULL;
	}
	memcpy(&ref, der, sizeof ref);
	if (ref.magic != PNO_KEY_MAGIC || ref.version != PNO_KEY_VERSION) {
		pno_raise(p, PNO_R_BAD_KEY_REFERENCE, "magic %#x, version %u; this provider reads version %d",
			  ref.magic, ref.version, PNO_KEY_VERSION);
		return NULL;
	}
	if (ref.reserved || ref.flags & ~PNO_KEY_TLS13_ONLY || ref.spki_len != len - sizeof ref) {
		pno_raise(p, PNO_R_BAD_KEY_REFERENCE, "flags %#x, public key of %u bytes in %zu",
			  ref.flags, ref.spki_len, len - sizeof ref);
		return NULL;
	}
	if (!EVP_Digest(spki, ref.spki_len, id, NULL, p->md[PNO_SHA256], NULL) ||
	    memcmp(id, ref.key_id, sizeof id)) {
		pno_raise(p, PNO_R_BAD_KEY_REFERENCE, "the key id is not that of the public key");
		return NULL;
	}
	k = calloc(1, sizeof *k);
	if (!k) {
		pno_raise(p, PNO_R_MEMORY, "key");
		return NULL;
	}
	k->prov = p;
	k->refs = 1;
	k->tls13_only = ref.flags & PNO_KEY_TLS13_ONLY;
	memcpy(k->id, id, sizeof id);
	k->pub = public_half(p, spki, ref.spki_len);
	if (!k->pub || !set_type(k)) {
		pno_raise(p, PNO_R_KEY_TYPE, "the public key is not RSA, P-256, P-384, P-521 or Ed25519");
		pno_key_free(k);
		return NULL;
	}
	pno_agent_begin(p->agent);
	return k;
}

struct pno_key *pno_key_up(struct pno_key *k)
{
	atomic_fetch_add_explicit(&k->refs, 1, memory_order_relaxed);
	return k;
}

void pno_key_free(struct pno_key *k)
{
	if (!k || atomic_fetch_sub_explicit(&k->refs, 1, memory_order_acq_rel) != 1)
		return;
	EVP_PKEY_free(k->pub);
	free(k);
}
