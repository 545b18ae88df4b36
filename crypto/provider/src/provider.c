/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The OpenSSL provider of remote keys.
 *
 * Theory of operation. A proxy is given, in place of a private key, a PEM block
 * that names one: PNO PRIVATE KEY, with the key's id and its public half.
 * decoder.c turns the block into a key object (key.c) of the ordinary type RSA,
 * EC or ED25519, and keymgmt.c answers what OpenSSL asks about it. It has the
 * look of a private key but refuses to be exported as one. That is what brings
 * the private operations here: OpenSSL tries the signature that it finds first,
 * of the default provider, cannot move the key there, and takes the one of the
 * key's own provider (signature.c, asym_cipher.c). Nothing can be imported or
 * generated here, so keys of others never get stuck in this provider, whatever
 * the order in which providers are loaded.
 *
 * Everything that needs the public half only (verify, encrypt, compare, export,
 * parameters) is done by OpenSSL's default provider in a library context of our
 * own, so that it works the same whatever the program configured.
 *
 * Private operations go to the key agent (agent.c) over a Unix socket, as
 * messages (wire.c). Inside an async job the job is paused meanwhile, else the
 * thread waits (wait.c).
 *
 * Where the agent is: the environment variable PNO_AGENT, else the parameter
 * "agent" of the provider's section in openssl.cnf, else PNO_AGENT_DEFAULT.
 * Patience with an operation, in milliseconds: PNO_AGENT_TIMEOUT_MS, else
 * "timeout_ms", else 3000.
 */
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/params.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent.h"
#include "provider.h"

const OSSL_ITEM pno_reasons[] = {
	{ PNO_R_BAD_KEY_REFERENCE, "malformed key reference" },
	{ PNO_R_KEY_TYPE, "unsupported type of key" },
	{ PNO_R_DIGEST, "unsupported digest" },
	{ PNO_R_PADDING, "unsupported padding" },
	{ PNO_R_SALT_LENGTH, "unsupported salt length" },
	{ PNO_R_INPUT, "unsupported input" },
	{ PNO_R_TLS13_ONLY, "the key signs TLS 1.3 handshakes only" },
	{ PNO_R_NO_KEY, "no key set" },
	{ PNO_R_BUFFER, "buffer too small" },
	{ PNO_R_MEMORY, "out of memory or threads" },
	{ PNO_R_LOCAL, "public-key operation failed" },
	{ PNO_R_AGENT_GONE, "key agent cannot be reached" },
	{ PNO_R_AGENT_TIMEOUT, "key agent did not answer in time" },
	{ PNO_R_AGENT_ANSWER, "key agent gave an impossible answer" },
	{ PNO_R_UNKNOWN_KEY, "no worker has the key" },
	{ PNO_R_DENIED, "not allowed by the access rules" },
	{ PNO_R_REFUSED, "not possible with this key" },
	{ PNO_R_BUSY, "too many operations" },
	{ PNO_R_CLUSTER, "workers cannot do it" },
	{ 0, NULL },
};

void pno_raise_at(const struct pno_prov *p, const char *file, int line, const char *func,
		  enum pno_reason reason, const char *format, ...)
{
	va_list ap;

	if (!p->new_error || !p->vset_error)
		return;
	va_start(ap, format);
	p->new_error(p->handle);
	if (p->set_error_debug)
		p->set_error_debug(p->handle, file, line, func);
	p->vset_error(p->handle, reason, format, ap);
	va_end(ap);
}

static const OSSL_PARAM *gettable(void *provctx)
{
	static const OSSL_PARAM list[] = {
		OSSL_PARAM_utf8_ptr(OSSL_PROV_PARAM_NAME, NULL, 0),
		OSSL_PARAM_utf8_ptr(OSSL_PROV_PARAM_VERSION, NULL, 0),
		OSSL_PARAM_int(OSSL_PROV_PARAM_STATUS, NULL),
		OSSL_PARAM_END,
	};

	(void)provctx;
	return list;
}

static int get_params(void *provctx, OSSL_PARAM params[])
{
	OSSL_PARAM *p;

	(void)provctx;
	p = OSSL_PARAM_locate(params, OSSL_PROV_PARAM_NAME);
	if (p && !OSSL_PARAM_set_utf8_ptr(p, "pno remote keys"))
		return 0;
	p = OSSL_PARAM_locate(params, OSSL_PROV_PARAM_VERSION);
	if (p && !OSSL_PARAM_set_utf8_ptr(p, "1"))
		return 0;
	p = OSSL_PARAM_locate(params, OSSL_PROV_PARAM_STATUS);
	return !p || OSSL_PARAM_set_int(p, 1);
}

static const OSSL_ALGORITHM *query(void *provctx, int operation, int *no_cache)
{
	(void)provctx;
	*no_cache = 0;
	switch (operation) {
	case OSSL_OP_KEYMGMT:
		return pno_keymgmts;
	case OSSL_OP_SIGNATURE:
		return pno_signatures;
	case OSSL_OP_ASYM_CIPHER:
		return pno_asym_ciphers;
	case OSSL_OP_DECODER:
		return pno_decoders;
	}
	return NULL;
}

static const OSSL_ITEM *reasons(void *provctx)
{
	(void)provctx;
	return pno_reasons;
}

static void teardown(void *provctx)
{
	struct pno_prov *p = provctx;

	if (!p)
		return;
	pno_agent_free(p->agent);
	free(p);
}

/* A setting: from the environment, else from openssl.cnf. */
static const char *setting(const struct pno_prov *p, const char *variable, const char *param)
{
	char *value = secure_getenv(variable);
	OSSL_PARAM ask[] = { OSSL_PARAM_utf8_ptr(param, &value, 0), OSSL_PARAM_END };

	if (value && *value)
		return value;
	value = NULL;
	if (!p->get_params || !p->get_params(p->handle, ask))
		return NULL;
	return value && *value ? value : NULL;
}

/*
 * What is local happens in a library context that all instances share and that
 * is never freed: a thread that ends later still looks into each context that
 * it has used.
 */
static bool find_local(struct pno_prov *p, const OSSL_DISPATCH *in)
{
	static const char *const names[PNO_HASHES] = { "SHA256", "SHA384", "SHA512" };
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	static OSSL_LIB_CTX *lib;
	static EVP_MD *md[PNO_HASHES];
	bool ok;

	pthread_mutex_lock(&lock);
	if (!lib) {
		/* From dispatch: BIO_new_from_core_bio needs the core's BIO functions. */
		lib = OSSL_LIB_CTX_new_from_dispatch(p->handle, in);
		if (lib && OSSL_PROVIDER_load(lib, "default"))
			for (int i = 0; i < PNO_HASHES; i++)
				md[i] = EVP_MD_fetch(lib, names[i], NULL);
	}
	ok = lib && md[0] && md[1] && md[2];
	p->lib = lib;
	memcpy(p->md, md, sizeof md);
	pthread_mutex_unlock(&lock);
	return ok;
}

static bool start(struct pno_prov *p, const OSSL_DISPATCH *in)
{
	const char *path, *patience;
	unsigned long ms = 3000;

	if (!find_local(p, in))
		return false;
	path = setting(p, "PNO_AGENT", "agent");
	patience = setting(p, "PNO_AGENT_TIMEOUT_MS", "timeout_ms");
	if (patience) {
		char *end;

		ms = strtoul(patience, &end, 10);
		if (*end || ms < 1 || ms > 600000) {
			pno_raise(p, PNO_R_INPUT, "timeout_ms or PNO_AGENT_TIMEOUT_MS is %s, want 1 to 600000", patience);
			return false;
		}
	}
	p->agent = pno_agent_new(path ? path : PNO_AGENT_DEFAULT, (unsigned)ms);
	if (!p->agent) {
		pno_raise(p, PNO_R_INPUT, "socket of the key agent: %s: too long, or out of memory", path);
		return false;
	}
	return true;
}

__attribute__((visibility("default")))
int OSSL_provider_init(const OSSL_CORE_HANDLE *handle, const OSSL_DISPATCH *in,
		       const OSSL_DISPATCH **out, void **provctx)
{
	static const OSSL_DISPATCH table[] = {
		{ OSSL_FUNC_PROVIDER_TEARDOWN, (void (*)(void))teardown },
		{ OSSL_FUNC_PROVIDER_GETTABLE_PARAMS, (void (*)(void))gettable },
		{ OSSL_FUNC_PROVIDER_GET_PARAMS, (void (*)(void))get_params },
		{ OSSL_FUNC_PROVIDER_QUERY_OPERATION, (void (*)(void))query },
		{ OSSL_FUNC_PROVIDER_GET_REASON_STRINGS, (void (*)(void))reasons },
		{ 0, NULL },
	};
	struct pno_prov *p = calloc(1, sizeof *p);

	if (!p)
		return 0;
	p->handle = handle;
	for (const OSSL_DISPATCH *f = in; f->function_id; f++) {
		switch (f->function_id) {
		case OSSL_FUNC_CORE_GET_PARAMS:
			p->get_params = OSSL_FUNC_core_get_params(f);
			break;
		case OSSL_FUNC_CORE_NEW_ERROR:
			p->new_error = OSSL_FUNC_core_new_error(f);
			break;
		case OSSL_FUNC_CORE_SET_ERROR_DEBUG:
			p->set_error_debug = OSSL_FUNC_core_set_error_debug(f);
			break;
		case OSSL_FUNC_CORE_VSET_ERROR:
			p->vset_error = OSSL_FUNC_core_vset_error(f);
			break;
		}
	}
	if (!start(p, in)) {
		teardown(p);
		return 0;
	}
	*out = table;
	*provctx = p;
	return 1;
}
