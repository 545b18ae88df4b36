/* SPDX-License-Identifier: Apache-2.0 */

/* From what OpenSSL asks for to a request to the agent; see scheme.c. */
#ifndef PNO_SCHEME_H
#define PNO_SCHEME_H

#include "provider.h"

/* The hash of that name, or PNO_NO_HASH. */
enum pno_hash pno_hash_named(const struct pno_prov *p, const char *name);
enum pno_hash pno_hash_of_size(size_t len);
size_t pno_hash_size(const struct pno_prov *p, enum pno_hash h);

/* DER of the AlgorithmIdentifier of a signature. */
const uint8_t *pno_algorithm_id(enum pno_type type, bool pss, enum pno_hash h, size_t *len);

/* Has a digest signed, or a message: the content of a CertificateVerify as such,
 * with Ed25519 any other whole. Errors are on the stack. */
int pno_sign_digest(struct pno_key *k, bool pss, enum pno_hash h, const uint8_t *digest, uint8_t *sig, size_t *siglen, size_t room);
int pno_sign_message(struct pno_key *k, bool pss, enum pno_hash h, const uint8_t *msg, size_t len, uint8_t *sig, size_t *siglen, size_t room);

/* One private operation, and its failure as an error on the stack. */
struct pno_request;
struct pno_answer;
bool pno_ask(struct pno_key *k, struct pno_request *r, struct pno_answer *answer);

#endif
