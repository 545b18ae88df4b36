/* SPDX-License-Identifier: Apache-2.0 */

/* The provider inside a program: threads, async jobs, fork after load, and an
 * agent that comes, goes and lies. Built in, so that sanitizers see it. */
#include <openssl/async.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/provider.h>
#include <openssl/rsa.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "fake_agent.h"

OSSL_provider_init_fn OSSL_provider_init;

static OSSL_LIB_CTX *lib;
static OSSL_PROVIDER *pno, *base;
static EVP_PKEY *key[FAKE_KEYS];

static void load(const char *timeout_ms)
{
	CHECK(!setenv("PNO_AGENT", fake->path, 1) && !setenv("PNO_AGENT_TIMEOUT_MS", timeout_ms, 1));
	CHECK((lib = OSSL_LIB_CTX_new()) && OSSL_PROVIDER_add_builtin(lib, "pno", OSSL_provider_init));
	CHECK((pno = OSSL_PROVIDER_load(lib, "pno")) && (base = OSSL_PROVIDER_load(lib, "default")));
	for (int i = 0; i < FAKE_KEYS; i++) {
		BIO *b = BIO_new_mem_buf(fake_ref(i), -1);

		CHECK((key[i] = PEM_read_bio_PrivateKey_ex(b, NULL, NULL, NULL, lib, NULL)));
		BIO_free(b);
	}
}

static void unload(void)
{
	for (int i = 0; i < FAKE_KEYS; i++)
		EVP_PKEY_free(key[i]);
	OSSL_PROVIDER_unload(pno);
	OSSL_PROVIDER_unload(base);
	OSSL_LIB_CTX_free(lib);
	ERR_clear_error();
}

static int sign(int k, const char *hash, int pss, uint8_t *sig, size_t *len)
{
	EVP_MD_CTX *m = EVP_MD_CTX_new();
	EVP_PKEY_CTX *p;
	int ok = EVP_DigestSignInit_ex(m, &p, hash, lib, NULL, key[k], NULL) == 1 &&
		 (!pss || EVP_PKEY_CTX_set_rsa_padding(p, RSA_PKCS1_PSS_PADDING) == 1) &&
		 EVP_DigestSign(m, sig, len, (const uint8_t *)"message", 7) == 1;

	EVP_MD_CTX_free(m);
	return ok;
}

/* With the certificate's key, which is of the default provider. */
static int verifies(int k, const char *hash, int pss, const uint8_t *sig, size_t len)
{
	BIO *b = BIO_new_mem_buf(fake_cert(k), -1);
	X509 *c = PEM_read_bio_X509(b, NULL, NULL, NULL);
	EVP_MD_CTX *m = EVP_MD_CTX_new();
	EVP_PKEY_CTX *p;
	int ok = EVP_DigestVerifyInit_ex(m, &p, hash, NULL, NULL, X509_get0_pubkey(c), NULL) == 1 &&
		 (!pss || EVP_PKEY_CTX_set_rsa_padding(p, RSA_PKCS1_PSS_PADDING) == 1) &&
		 EVP_DigestVerify(m, sig, len, (const uint8_t *)"message", 7) == 1;

	EVP_MD_CTX_free(m);
	X509_free(c);
	BIO_free(b);
	return ok;
}

static int sign_once(int k)
{
	const char *hash = k == FAKE_ED25519 ? NULL : "SHA256";
	uint8_t sig[512];
	size_t len = sizeof sig;

	return sign(k, hash, k == FAKE_RSA, sig, &len) && verifies(k, hash, k == FAKE_RSA, sig, len);
}

static int last_reason(const char *text)
{
	char buf[256];
	unsigned long e = ERR_peek_last_error();

	ERR_error_string_n(e, buf, sizeof buf);
	ERR_clear_error();
	if (strstr(buf, text))
		return 1;
	fprintf(stderr, "last error: %s, want %s\n", buf, text);
	return 0;
}

static void every_scheme(void)
{
	static const char *const hashes[] = { "SHA256", "SHA384", "SHA512" };
	uint8_t sig[512];
	size_t len;

	fake_start();
	load("2000");
	for (int k = 0; k < FAKE_KEYS; k++)
		for (int h = 0; h < 3; h++)
			for (int pss = 0; pss <= (k == FAKE_RSA); pss++) {
				const char *hash = k == FAKE_ED25519 ? NULL : hashes[h];

				len = sizeof sig;
				CHECK(sign(k, hash, pss, sig, &len) && verifies(k, hash, pss, sig, len));
				sig[len / 2] ^= 1;
				CHECK(!verifies(k, hash, pss, sig, len));
			}
	CHECK(fake->hellos == 1);
	ERR_clear_error();
	len = sizeof sig;
	CHECK(!sign(FAKE_RSA, "SHA1", 0, sig, &len) && ERR_peek_error());
	ERR_clear_error();
	len = 16;
	CHECK(!sign(FAKE_P256, "SHA256", 0, sig, &len) && last_reason("buffer too small"));
	unload();
	fake_kill();
}

/* A digest that cannot be set is not replaced by another, nor by what lies beyond
 * the known ones, when the caller passes over the failure. */
static void refused_digest(void)
{
	uint8_t sig[512];
	EVP_PKEY_CTX *p;
	size_t len;

	fake_start();
	load("2000");
	for (int k = 0; k < FAKE_KEYS; k++) {
		if (k == FAKE_ED25519)
			continue;
		for (int updates = 0; updates < 3; updates++) { /* 0: at once; 1: in pieces; 2: none came */
			EVP_MD_CTX *m = EVP_MD_CTX_new();

			CHECK(EVP_DigestSignInit_ex(m, &p, "SHA256", lib, NULL, key[k], NULL) == 1);
			CHECK(EVP_PKEY_CTX_set_signature_md(p, EVP_md5()) <= 0 && last_reason("digest"));
			len = sizeof sig;
			if (!updates)
				CHECK(EVP_DigestSign(m, sig, &len, (const uint8_t *)"hello", 5) != 1);
			else if (updates == 1)
				CHECK(EVP_DigestSignUpdate(m, "hello", 5) != 1);
			else
				CHECK(EVP_DigestSignFinal(m, sig, &len) != 1);
			CHECK(ERR_peek_error());
			ERR_clear_error();
			EVP_MD_CTX_free(m);
		}
	}
	/* In the middle of a message it stays what it was. */
	for (int known = 0; known < 2; known++) {
		EVP_MD_CTX *m = EVP_MD_CTX_new();

		CHECK(EVP_DigestSignInit_ex(m, &p, "SHA256", lib, NULL, key[FAKE_P256], NULL) == 1);
		CHECK(EVP_DigestSignUpdate(m, "message", 7) == 1);
		CHECK(EVP_PKEY_CTX_set_signature_md(p, known ? EVP_sha512() : EVP_md5()) <= 0 && last_reason("digest"));
		len = sizeof sig;
		CHECK(EVP_DigestSignFinal(m, sig, &len) == 1 && verifies(FAKE_P256, "SHA256", 0, sig, len));
		EVP_MD_CTX_free(m);
	}
	unload();
	fake_kill();
}

/* A key behaves like one: equality with the public key, sizes, duplicates, and
 * an owner of a private half that nobody can see. */
static void look(void)
{
	load("2000");
	for (int k = 0; k < FAKE_KEYS; k++) {
		BIO *b = BIO_new_mem_buf(fake_cert(k), -1), *out = BIO_new(BIO_s_mem());
		X509 *c = PEM_read_bio_X509_AUX(b, NULL, NULL, NULL);
		EVP_PKEY *dup = EVP_PKEY_dup(key[k]);

		CHECK(X509_check_private_key(c, key[k]) == 1);
		CHECK(EVP_PKEY_eq(key[k], X509_get0_pubkey(c)) == 1 && dup && EVP_PKEY_eq(dup, key[k]) == 1);
		CHECK(EVP_PKEY_eq(key[k], key[(k + 1) % FAKE_KEYS]) != 1);
		CHECK(EVP_PKEY_get_bits(key[k]) == EVP_PKEY_get_bits(X509_get0_pubkey(c)));
		CHECK(EVP_PKEY_get_size(key[k]) == EVP_PKEY_get_size(X509_get0_pubkey(c)));
		ERR_clear_error();
		CHECK(!PEM_write_bio_PrivateKey(out, key[k], NULL, NULL, 0, NULL, NULL));
		CHECK(PEM_write_bio_PUBKEY(out, key[k]));
		ERR_clear_error();
		EVP_PKEY_free(dup);
		X509_free(c);
		BIO_free(b);
		BIO_free(out);
	}
	unload();
}

static void *signer(void *arg)
{
	long n = (long)arg;

	for (int i = 0; i < 40; i++)
		CHECK(sign_once((int)(n + i) % FAKE_KEYS));
	return NULL;
}

static void threads(void)
{
	pthread_t t[8];

	fake->hellos = 0;
	fake->inflight = 3;
	fake_start();
	load("10000");
	for (long i = 0; i < 8; i++)
		CHECK(!pthread_create(&t[i], NULL, signer, (void *)i));
	for (int i = 0; i < 8; i++)
		CHECK(!pthread_join(t[i], NULL));
	CHECK(fake->hellos == 1 && !fake->unexpected);
	unload();
	fake_kill();
	fake->inflight = 1024;
}

#ifndef __SANITIZE_THREAD__
/* As nginx and HAProxy do: load, use (or not), fork, use in every process. */
static void forks(void)
{
	fake->hellos = 0;
	fake_start();
	load("5000");
	for (int used = 0; used < 2; used++) {
		pid_t child[3];

		for (int i = 0; i < 3; i++) {
			child[i] = fork();
			CHECK(child[i] >= 0);
			if (!child[i]) {
				for (int n = 0; n < 20; n++)
					CHECK(sign_once(n % FAKE_KEYS));
				unload();
				_exit(0);
			}
		}
		for (int n = 0; n < 20; n++)
			CHECK(sign_once(n % FAKE_KEYS));
		for (int i = 0; i < 3; i++) {
			int status;

			CHECK(waitpid(child[i], &status, 0) == child[i] && !status);
		}
		CHECK(fake->hellos == (used ? 7 : 4));
	}
	unload();
	fake_kill();
}

static void absent(void)
{
	struct timespec a, b;
	double first, second;

	load("1500");
	clock_gettime(CLOCK_MONOTONIC, &a);
	CHECK(!sign_once(FAKE_P256) && last_reason("key agent cannot be reached"));
	clock_gettime(CLOCK_MONOTONIC, &b);
	first = (double)(b.tv_sec - a.tv_sec) + 1e-9 * (double)(b.tv_nsec - a.tv_nsec);
	CHECK(first > 1.4);
	/* From now on the wait is short. */
	CHECK(!sign_once(FAKE_P256) && last_reason("key agent cannot be reached"));
	clock_gettime(CLOCK_MONOTONIC, &a);
	second = (double)(a.tv_sec - b.tv_sec) + 1e-9 * (double)(a.tv_nsec - b.tv_nsec);
	CHECK(second < 1);
	/* And over as soon as there is an agent, even a slow one. */
	fake->delay_ms = 300;
	fake_start();
	CHECK(sign_once(FAKE_P256));
	fake->delay_ms = 0;
	fake_kill();
	unload();
}
#endif

static void faults(void)
{
	static const struct {
		enum fake_mode mode;
		const char *reason;
	} cases[] = {
		{ FAKE_GARBAGE, "key agent" },
		{ FAKE_SILENT, "did not answer in time" },
		{ FAKE_CLOSE, "key agent" },
		{ FAKE_REFUSE, "key agent cannot be reached" },
	};

	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		fake->mode = cases[i].mode;
		fake_start();
		load("300");
		CHECK(!sign_once(FAKE_P384) && last_reason(cases[i].reason));
		CHECK(!sign_once(FAKE_P384) && last_reason("key agent"));
		fake->mode = FAKE_RIGHT;
		/* One that owes an answer is given up on after a second. */
		for (int n = 0; n < 20 && !sign_once(FAKE_P384); n++)
			ERR_clear_error();
		CHECK(sign_once(FAKE_P384));
		unload();
		fake_kill();
	}
	/* An answer that nobody asked for ends the connection and nothing else. */
	fake->mode = FAKE_TWO_ANSWERS;
	fake_start();
	load("3000");
	for (int n = 0; n < 20; n++)
		CHECK(sign_once(n % FAKE_KEYS));
	unload();
	fake_kill();
	fake->mode = FAKE_RIGHT;
}

#ifndef __SANITIZE_THREAD__
struct job {
	ASYNC_JOB *job;
	ASYNC_WAIT_CTX *ctx;
	int ret, key, pauses, over;
};

static int in_job(void *arg)
{
	return sign_once(*(int *)arg);
}

static void step(struct job *j)
{
	switch (ASYNC_start_job(&j->job, j->ctx, &j->ret, in_job, &j->key, sizeof j->key)) {
	case ASYNC_FINISH:
		j->over = 1;
		break;
	case ASYNC_PAUSE:
		j->pauses++;
		break;
	default:
		CHECK(!"a job can be started");
	}
}

/* Many jobs of one thread wait at the same time, and each is told when it may
 * go on. Those that are given up leave nothing behind but what OpenSSL leaks. */
static void jobs(int given_up)
{
	enum { N = 24 };
	struct job j[N];
	size_t n;
	int fd, left = N;

	memset(j, 0, sizeof j);
	for (int i = 0; i < N; i++) {
		j[i].key = i % FAKE_KEYS;
		CHECK((j[i].ctx = ASYNC_WAIT_CTX_new()));
		step(&j[i]);
		/* A job that set a descriptor pauses, or HAProxy would never know it. */
		CHECK(!j[i].over && j[i].pauses == 1);
	}
	for (int i = 0; given_up && i < N; i += 2, left--)
		ASYNC_WAIT_CTX_free(j[i].ctx);
	while (left) {
		for (int i = given_up ? 1 : 0; i < N; i += given_up ? 2 : 1) {
			struct pollfd p = { .events = POLLIN };

			if (j[i].over)
				continue;
			n = 1;
			CHECK(ASYNC_WAIT_CTX_get_all_fds(j[i].ctx, &fd, &n) && n == 1);
			p.fd = fd;
			if (poll(&p, 1, 20) != 1)
				continue;
			step(&j[i]);
			/* What is readable is the answer: no waking in vain. */
			CHECK(j[i].over && j[i].ret == 1 && poll(&p, 1, 0) == 0);
			left--;
		}
	}
	for (int i = given_up ? 1 : 0; i < N; i += given_up ? 2 : 1)
		ASYNC_WAIT_CTX_free(j[i].ctx);
}

static void async(void)
{
	fake_start();
	load("5000");
	CHECK(ASYNC_is_capable() && ASYNC_init_thread(0, 0));
	fake->delay_ms = 2;
	jobs(0);
	jobs(0);
	fake->delay_ms = 0;
	/* The agent goes away while jobs wait. */
	fake->delay_ms = 20;
	fake_kill();
	fake_start();
	jobs(0);
	fake->delay_ms = 0;
	unload();
	ASYNC_cleanup_thread();
	fake_kill();
}

/* A program that asks again and again, and never sleeps, is let go on each time,
 * also with the second operation of a connection. */
static void busy_polling(void)
{
	struct job j = { .key = FAKE_P256 };

	fake_start();
	load("20000");
	CHECK(ASYNC_init_thread(0, 0) && (j.ctx = ASYNC_WAIT_CTX_new()));
	fake->delay_ms = 500;
	for (int op = 0; op < 2; op++) {
		j.job = NULL;
		j.over = j.pauses = 0;
		while (!j.over)
			step(&j);
		CHECK(j.ret == 1 && j.pauses > 3000);
	}
	fake->delay_ms = 0;
	ASYNC_WAIT_CTX_free(j.ctx);
	unload();
	ASYNC_cleanup_thread();
	fake_kill();
}

static int in_blocked_job(void *arg)
{
	int ok;

	ASYNC_block_pause();
	ok = sign_once(*(int *)arg);
	ASYNC_unblock_pause();
	return ok && sign_once(*(int *)arg);
}

/* A job that must not pause waits, and does not spin; the next one pauses. */
static void blocked(void)
{
	struct job j = { .key = FAKE_P256 };
	struct timespec a, b;

	fake_start();
	load("20000");
	CHECK(ASYNC_init_thread(0, 0) && (j.ctx = ASYNC_WAIT_CTX_new()));
	fake->delay_ms = 400;
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &a);
	CHECK(ASYNC_start_job(&j.job, j.ctx, &j.ret, in_blocked_job, &j.key, sizeof j.key) == ASYNC_PAUSE);
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &b);
	CHECK((b.tv_sec - a.tv_sec) * 1000 + (b.tv_nsec - a.tv_nsec) / 1000000 < 200);
	fake->delay_ms = 0;
	while (!j.over)
		step(&j);
	CHECK(j.ret == 1);
	ASYNC_WAIT_CTX_free(j.ctx);
	unload();
	ASYNC_cleanup_thread();
	fake_kill();
}

/* Of the leak sanitizer, where it is: OpenSSL leaks the stacks of these jobs,
 * and what is only known on them. */
void __lsan_disable(void) __attribute__((weak));
void __lsan_enable(void) __attribute__((weak));

static void abandoned(void)
{
	fake_start();
	load("5000");
	CHECK(ASYNC_init_thread(0, 0));
	fake->delay_ms = 2;
	if (__lsan_disable)
		__lsan_disable();
	jobs(1);
	if (__lsan_enable)
		__lsan_enable();
	fake->delay_ms = 0;
	CHECK(sign_once(FAKE_RSA));
	unload();
	fake_kill();
}
#endif

static void malformed(void)
{
	char *text = strdup(fake_ref(FAKE_P256)), *at = strchr(text, '\n') + 1;
	BIO *b;

	load("500");
	/* The last characters have bits that mean nothing. */
	for (size_t i = 0; i < 180; i++) {
		char was = at[i];

		if (was == '\n')
			continue;
		at[i] = was == 'A' ? 'B' : 'A';
		b = BIO_new_mem_buf(text, -1);
		CHECK(!PEM_read_bio_PrivateKey_ex(b, NULL, NULL, NULL, lib, NULL) && ERR_peek_error());
		ERR_clear_error();
		BIO_free(b);
		at[i] = was;
	}
	free(text);
	unload();
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*run)(void);
	} all[] = {
		{ "every_scheme", every_scheme }, { "refused_digest", refused_digest }, { "look", look }, { "malformed", malformed },
		{ "threads", threads }, { "faults", faults },
#ifndef __SANITIZE_THREAD__ /* which knows neither threads after fork nor the stacks of jobs */
		{ "absent", absent }, { "forks", forks }, { "async", async }, { "abandoned", abandoned },
		{ "busy_polling", busy_polling }, { "blocked", blocked },
#endif
	};

	alarm(240);
	fake_begin();
	for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
		if (argc > 1 && strcmp(argv[1], all[i].name))
			continue;
		printf("provider: %s\n", all[i].name);
		fflush(stdout);
		all[i].run();
	}
	fake_end();
	return 0;
}
