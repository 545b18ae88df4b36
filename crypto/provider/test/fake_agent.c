/* SPDX-License-Identifier: Apache-2.0 */

#include "fake_agent.h"

#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/rsa.h>
#include <openssl/sha.h>
#include <openssl/x509.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "protocol.h"

#define CLIENTS 64

struct fake_state *fake;
static char dir[] = "/tmp/pno-fake-XXXXXX";
static pid_t pid;
static EVP_PKEY *keys[FAKE_KEYS];
static uint8_t ids[FAKE_KEYS][32];
static char *refs[FAKE_KEYS], *certs[FAKE_KEYS];

static char *to_text(BIO *b)
{
	char *data, *text;
	long n = BIO_get_mem_data(b, &data);

	CHECK(n > 0 && (text = malloc((size_t)n + 1)));
	memcpy(text, data, (size_t)n);
	text[n] = 0;
	BIO_free(b);
	return text;
}

static void make_ref(int i)
{
	struct pno_key_ref ref = { .magic = PNO_KEY_MAGIC, .version = PNO_KEY_VERSION };
	unsigned char *spki = NULL, block[sizeof ref + PNO_KEY_SPKI];
	int n = i2d_PUBKEY(keys[i], &spki);
	BIO *b = BIO_new(BIO_s_mem());

	CHECK(n > 0 && n < PNO_KEY_SPKI && b);
	CHECK(EVP_Digest(spki, (size_t)n, ids[i], NULL, EVP_sha256(), NULL));
	memcpy(ref.key_id, ids[i], sizeof ref.key_id);
	ref.spki_len = (uint32_t)n;
	memcpy(block, &ref, sizeof ref);
	memcpy(block + sizeof ref, spki, (size_t)n);
	CHECK(PEM_write_bio(b, PNO_KEY_PEM_LABEL, "", block, (long)sizeof ref + n));
	OPENSSL_free(spki);
	refs[i] = to_text(b);
}

static void make_cert(int i)
{
	X509 *c = X509_new();
	X509_NAME *name = X509_get_subject_name(c);
	BIO *b = BIO_new(BIO_s_mem());

	CHECK(X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, (const unsigned char *)"localhost", -1, -1, 0));
	CHECK(X509_set_issuer_name(c, name) && X509_set_pubkey(c, keys[i]));
	CHECK(X509_gmtime_adj(X509_getm_notBefore(c), -3600) && X509_gmtime_adj(X509_getm_notAfter(c), 86400));
	CHECK(X509_sign(c, keys[i], i == FAKE_ED25519 ? NULL : EVP_sha256()));
	CHECK(PEM_write_bio_X509(b, c));
	X509_free(c);
	certs[i] = to_text(b);
}

void fake_begin(void)
{
	fake = mmap(NULL, sizeof *fake, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(fake != MAP_FAILED && mkdtemp(dir));
	snprintf(fake->path, sizeof fake->path, "%s/agent.sock", dir);
	fake->inflight = 1024;
	CHECK((keys[FAKE_RSA] = EVP_RSA_gen(2048)));
	CHECK((keys[FAKE_P256] = EVP_EC_gen("P-256")));
	CHECK((keys[FAKE_P384] = EVP_EC_gen("P-384")));
	CHECK((keys[FAKE_ED25519] = EVP_PKEY_Q_keygen(NULL, NULL, "ED25519")));
	for (int i = 0; i < FAKE_KEYS; i++) {
		make_ref(i);
		make_cert(i);
	}
}

const char *fake_ref(int key)
{
	return refs[key];
}

const char *fake_cert(int key)
{
	return certs[key];
}

static struct pno_agent_msg head(uint16_t type, size_t size, uint64_t id)
{
	return (struct pno_agent_msg){ PNO_AGENT_MAGIC, PNO_AGENT_VERSION, type, (uint32_t)size, 0, id };
}

static const EVP_MD *hash_of(uint16_t scheme)
{
	switch (scheme) {
	case PNO_RSA_PKCS1_SHA256: case PNO_ECDSA_P256_SHA256: case PNO_RSA_PSS_RSAE_SHA256:
		return EVP_sha256();
	case PNO_RSA_PKCS1_SHA384: case PNO_ECDSA_P384_SHA384: case PNO_RSA_PSS_RSAE_SHA384:
		return EVP_sha384();
	}
	return EVP_sha512();
}

static size_t compute(const struct pno_agent_op *op, const uint8_t *data, uint8_t *out)
{
	size_t len = PNO_AGENT_OUTPUT;
	EVP_PKEY *k = NULL;
	EVP_PKEY_CTX *c;

	for (int i = 0; i < FAKE_KEYS; i++)
		if (!memcmp(ids[i], op->key_id, 32))
			k = keys[i];
	if (!k)
		return 0;
	if (op->scheme == PNO_ED25519) {
		EVP_MD_CTX *m = EVP_MD_CTX_new();

		CHECK(EVP_DigestSignInit(m, NULL, NULL, NULL, k) && EVP_DigestSign(m, out, &len, data, op->len));
		EVP_MD_CTX_free(m);
		return len;
	}
	c = EVP_PKEY_CTX_new(k, NULL);
	CHECK(EVP_PKEY_sign_init(c) > 0 && EVP_PKEY_CTX_set_signature_md(c, hash_of(op->scheme)) > 0);
	if (op->scheme >> 8 == 8)
		CHECK(EVP_PKEY_CTX_set_rsa_padding(c, RSA_PKCS1_PSS_PADDING) > 0 &&
		      EVP_PKEY_CTX_set_rsa_pss_saltlen(c, RSA_PSS_SALTLEN_DIGEST) > 0);
	CHECK(EVP_PKEY_sign(c, out, &len, data, op->len) > 0);
	EVP_PKEY_CTX_free(c);
	return len;
}

static void answer_op(int fd, const struct pno_agent_op *op, const uint8_t *data)
{
	uint8_t packet[2][sizeof(struct pno_agent_result) + PNO_AGENT_OUTPUT] = { { 0 } };
	struct pno_agent_result r = { .status = PNO_STATUS_OK };
	size_t n, size;

	fake->ops++;
	if (fake->delay_ms)
		usleep((unsigned)fake->delay_ms * 1000);
	if (fake->mode == FAKE_SILENT)
		return;
	n = compute(op, data, packet[0] + sizeof r);
	if (!n)
		r.status = PNO_STATUS_UNKNOWN_KEY;
	size = sizeof r + ((n + 7) & ~(size_t)7);
	r.h = head(PNO_AGENT_RESULT, size, op->h.id);
	r.len = (uint16_t)n;
	memcpy(packet[0], &r, sizeof r);
	if (fake->mode == FAKE_GARBAGE)
		CHECK(RAND_bytes(packet[0] + (fake->ops % 3) * 8, 64));
	send(fd, packet[0], size, MSG_NOSIGNAL);
	if (fake->mode == FAKE_TWO_ANSWERS)
		send(fd, packet[0], size, MSG_NOSIGNAL);
}

static void answer_hello(int fd)
{
	struct pno_agent_welcome w = { .max_inflight = (uint32_t)fake->inflight };
	struct pno_agent_refused no = { .err = 1, .text = "you may not" };

	fake->hellos++;
	w.h = head(PNO_AGENT_WELCOME, sizeof w, 0);
	no.h = head(PNO_AGENT_REFUSED, sizeof no, 0);
	if (fake->mode == FAKE_REFUSE)
		send(fd, &no, sizeof no, MSG_NOSIGNAL);
	else
		send(fd, &w, sizeof w, MSG_NOSIGNAL);
}

/* False: the client is gone, or to be sent away. */
static int serve(int fd)
{
	static uint8_t packet[PNO_AGENT_PACKET];
	ssize_t n = recv(fd, packet, sizeof packet, 0);
	struct pno_agent_op op;

	if (n <= 0)
		return 0;
	for (ssize_t at = 0; at < n; at += op.h.size) {
		memset(&op, 0, sizeof op);
		memcpy(&op, packet + at, (size_t)(n - at) < sizeof op ? (size_t)(n - at) : sizeof op);
		if (op.h.magic != PNO_AGENT_MAGIC || op.h.size < sizeof op.h || op.h.size > (size_t)(n - at)) {
			fake->unexpected++;
			return 0;
		}
		if (op.h.type == PNO_AGENT_HELLO)
			answer_hello(fd);
		else if (fake->mode == FAKE_CLOSE)
			return 0;
		else if (op.h.type == PNO_AGENT_OP)
			answer_op(fd, &op, packet + at + sizeof op);
		else
			fake->unexpected++;
	}
	return 1;
}

static void agent_process(int listener)
{
	struct pollfd p[CLIENTS + 1] = { { .fd = listener, .events = POLLIN } };
	int n = 1;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;) {
		poll(p, (nfds_t)n, -1);
		for (int i = n - 1; i > 0; i--)
			if (p[i].revents && !serve(p[i].fd)) {
				close(p[i].fd);
				p[i] = p[--n];
			}
		if (p[0].revents && n <= CLIENTS)
			p[n++] = (struct pollfd){ .fd = accept(listener, NULL, NULL), .events = POLLIN };
	}
}

void fake_start(void)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	unlink(fake->path);
	memcpy(a.sun_path, fake->path, sizeof fake->path);
	CHECK(fd >= 0 && !bind(fd, (struct sockaddr *)&a, sizeof a) && !listen(fd, 64));
	pid = fork();
	CHECK(pid >= 0);
	if (!pid)
		agent_process(fd);
	close(fd);
}

void fake_kill(void)
{
	if (!pid)
		return;
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	pid = 0;
}

void fake_end(void)
{
	fake_kill();
	unlink(fake->path);
	rmdir(dir);
	for (int i = 0; i < FAKE_KEYS; i++) {
		EVP_PKEY_free(keys[i]);
		free(refs[i]);
		free(certs[i]);
	}
}
