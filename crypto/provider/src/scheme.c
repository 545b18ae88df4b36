/* SPDX-License-Identifier: Apache-2.0 */

/*
 * From what OpenSSL asks for to a request to the agent.
 *
 * OpenSSL names a digest, a padding and a salt length; the agent knows TLS
 * signature schemes and nothing else. There is no way to ask for raw RSA, for
 * SHA-1, or for a salt of another length than the digest's. A message that is
 * the content of a TLS 1.3 CertificateVerify is sent as what it is, so that the
 * worker sees that it signs a handshake; of any other, the digest.
 */
#include <string.h>

#include "agent.h"
#include "scheme.h"

enum pno_hash pno_hash_named(const struct pno_prov *p, const char *name)
{
	for (enum pno_hash h = 0; h < PNO_HASHES; h++)
		if (EVP_MD_is_a(p->md[h], name))
			return h;
	return PNO_NO_HASH;
}

enum pno_hash pno_hash_of_size(size_t len)
{
	return len == 32 ? PNO_SHA256 : len == 48 ? PNO_SHA384 : len == 64 ? PNO_SHA512 : PNO_NO_HASH;
}

size_t pno_hash_size(const struct pno_prov *p, enum pno_hash h)
{
	return (size_t)EVP_MD_get_size(p->md[h]);
}

static uint16_t scheme_of(enum pno_type type, bool pss, enum pno_hash h)
{
	static const uint16_t pkcs1[] = { PNO_RSA_PKCS1_SHA256, PNO_RSA_PKCS1_SHA384, PNO_RSA_PKCS1_SHA512 };
	static const uint16_t rsae[] = { PNO_RSA_PSS_RSAE_SHA256, PNO_RSA_PSS_RSAE_SHA384, PNO_RSA_PSS_RSAE_SHA512 };
	static const uint16_t ec[] = { PNO_ECDSA_P256_SHA256, PNO_ECDSA_P384_SHA384, PNO_ECDSA_P521_SHA512 };

	if (type == PNO_KEY_ED25519)
		return PNO_ED25519;
	return type == PNO_KEY_EC ? ec[h] : pss ? rsae[h] : pkcs1[h];
}

/* sha256/384/512WithRSAEncryption differ in one byte, ecdsa-with-SHA… likewise. */
#define RSA_OID(n)  0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, n, 0x05, 0x00
#define EC_OID(n)   0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, n
#define SHA_ID(n)   0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, n, 0x05, 0x00
/* RSASSA-PSS with the hash, MGF1 with the same, and the salt length. */
#define PSS_OID(n, salt)                                                                           \
	0x30, 0x41, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a, 0x30, 0x34,  \
	0xa0, 0x0f, SHA_ID(n),                                                                     \
	0xa1, 0x1c, 0x30, 0x1a, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x08,  \
	SHA_ID(n), 0xa2, 0x03, 0x02, 0x01, salt

const uint8_t *pno_algorithm_id(enum pno_type type, bool pss, enum pno_hash h, size_t *len)
{
	static const uint8_t rsa[PNO_HASHES][15] = { { RSA_OID(0x0b) }, { RSA_OID(0x0c) }, { RSA_OID(0x0d) } };
	static const uint8_t ec[PNO_HASHES][12] = { { EC_OID(0x02) }, { EC_OID(0x03) }, { EC_OID(0x04) } };
	static const uint8_t rsassa[PNO_HASHES][67] = {
		{ PSS_OID(0x01, 0x20) }, { PSS_OID(0x02, 0x30) }, { PSS_OID(0x03, 0x40) },
	};
	static const uint8_t ed[] = { 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70 };

	if (type == PNO_KEY_ED25519) {
		*len = sizeof ed;
		return ed;
	}
	if (h == PNO_NO_HASH)
		return NULL;
	*len = type == PNO_KEY_EC ? sizeof ec[h] : pss ? sizeof rsassa[h] : sizeof rsa[h];
	return type == PNO_KEY_EC ? ec[h] : pss ? rsassa[h] : rsa[h];
}

static enum pno_reason reason_of(int status)
{
	switch (status) {
	case PNO_CALL_GONE:
		return PNO_R_AGENT_GONE;
	case PNO_CALL_TIMEOUT:
	case PNO_STATUS_DEADLINE_EXCEEDED:
		return PNO_R_AGENT_TIMEOUT;
	case PNO_CALL_BROKEN:
		return PNO_R_MEMORY;
	case PNO_STATUS_UNKNOWN_KEY:
		return PNO_R_UNKNOWN_KEY;
	case PNO_STATUS_DENIED:
		return PNO_R_DENIED;
	case PNO_STATUS_BAD_SCHEME:
	case PNO_STATUS_BAD_INPUT:
		return PNO_R_REFUSED;
	case PNO_STATUS_RATE_LIMITED:
	case PNO_STATUS_OVERLOADED:
		return PNO_R_BUSY;
	}
	return PNO_R_CLUSTER;
}

bool pno_ask(struct pno_key *k, struct pno_request *r, struct pno_answer *answer)
{
	r->key_id = k->id;
	pno_agent_call(k->prov->agent, r, answer);
	if (answer->status == PNO_STATUS_OK)
		return true;
	pno_raise(k->prov, reason_of(answer->status), "key %02x%02x%02x%02x…, scheme %#06x, status %d%s%s",
		  k->id[0], k->id[1], k->id[2], k->id[3], r->scheme, answer->status,
		  *answer->text ? ": " : "", answer->text);
	return false;
}

static int sign(struct pno_key *k, struct pno_request *r, uint8_t *sig, size_t *siglen, size_t room)
{
	struct pno_answer answer;

	if (room < k->size) {
		pno_raise(k->prov, PNO_R_BUFFER, "%zu bytes for a signature of %zu", room, k->size);
		return 0;
	}
	if (!pno_ask(k, r, &answer))
		return 0;
	if (answer.len > k->size || (k->type != PNO_KEY_EC && answer.len != k->size)) {
		pno_raise(k->prov, PNO_R_AGENT_ANSWER, "a signature of %zu bytes, want %zu", answer.len, k->size);
		return 0;
	}
	memcpy(sig, answer.data, answer.len);
	*siglen = answer.len;
	return 1;
}

/* A caller that passes over a failure to set a digest arrives here without one. */
static bool hash_is_set(const struct pno_key *k, enum pno_hash h)
{
	if (h < PNO_HASHES || k->type == PNO_KEY_ED25519)
		return true;
	pno_raise(k->prov, PNO_R_DIGEST, "none is set; there are SHA256, SHA384 and SHA512");
	return false;
}

int pno_sign_digest(struct pno_key *k, bool pss, enum pno_hash h, const uint8_t *digest, uint8_t *sig, size_t *siglen, size_t room)
{
	struct pno_request r = { .input = PNO_INPUT_DIGEST, .data = digest };

	if (k->tls13_only) {
		pno_raise(k->prov, PNO_R_TLS13_ONLY, "a bare digest");
		return 0;
	}
	if (!hash_is_set(k, h))
		return 0;
	r.scheme = scheme_of(k->type, pss, h);
	r.len = pno_hash_size(k->prov, h);
	return sign(k, &r, sig, siglen, room);
}

/* The transcript hash behind 64 spaces, the context and a zero byte. */
static bool split_tls13(const uint8_t *msg, size_t len, struct pno_request *r)
{
	static const char server[] = "TLS 1.3, server CertificateVerify", client[] = "TLS 1.3, client CertificateVerify";
	size_t prefix = 64 + sizeof server;

	if (len != prefix + 32 && len != prefix + 48)
		return false;
	for (size_t i = 0; i < 64; i++)
		if (msg[i] != ' ')
			return false;
	if (!memcmp(msg + 64, server, sizeof server))
		r->input = PNO_INPUT_TLS13_SERVER;
	else if (!memcmp(msg + 64, client, sizeof client))
		r->input = PNO_INPUT_TLS13_CLIENT;
	else
		return false;
	r->data = msg + prefix;
	r->len = len - prefix;
	return true;
}

int pno_sign_message(struct pno_key *k, bool pss, enum pno_hash h, const uint8_t *msg, size_t len, uint8_t *sig, size_t *siglen, size_t room)
{
	struct pno_request r = { .input = PNO_INPUT_MESSAGE, .data = msg, .len = len };
	uint8_t digest[EVP_MAX_MD_SIZE];

	if (!hash_is_set(k, h))
		return 0;
	r.scheme = scheme_of(k->type, pss, h);
	/* With every key: the access rules may allow this and no digest. */
	if (split_tls13(msg, len, &r))
		return sign(k, &r, sig, siglen, room);
	if (k->tls13_only) {
		pno_raise(k->prov, PNO_R_TLS13_ONLY, "%zu bytes that are no CertificateVerify", len);
		return 0;
	}
	if (k->type != PNO_KEY_ED25519) {
		if (!EVP_Digest(msg, len, digest, NULL, k->prov->md[h], NULL)) {
			pno_raise(k->prov, PNO_R_LOCAL, "digest");
			return 0;
		}
		return pno_sign_digest(k, pss, h, digest, sig, siglen, room);
	}
	if (!len || len > PNO_AGENT_INPUT) {
		pno_raise(k->prov, PNO_R_INPUT, "Ed25519 signs 1 to %d bytes here, not %zu", PNO_AGENT_INPUT, len);
		return 0;
	}
	return sign(k, &r, sig, siglen, room);
}
