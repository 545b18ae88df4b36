/* SPDX-License-Identifier: Apache-2.0 */

/* One queue pair against the DPU's end of it: layout, order, limits, hostile
 * contents, and the sleep and doorbell races. */
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "fake_dpu.h"
#include "qp.h"
#include "real.h"

#define SIZE 65536u

struct pair {
	struct pno_qp host;
	struct fake_qp dev;
	struct pno_host_line hl;
	struct pno_dev_line dl;
	uint8_t h2d[SIZE], d2h[SIZE];
};

static struct pair *make(void)
{
	struct pair *p = aligned_alloc(64, (sizeof *p + 63) & ~63ul);

	CHECK(p);
	memset(p, 0, sizeof *p);
	p->host = (struct pno_qp){ .host = &p->hl, .dev = &p->dl, .h2d = p->h2d, .d2h = p->d2h,
				   .h2d_size = SIZE, .d2h_size = SIZE, .doorbell = -1 };
	p->dev = (struct fake_qp){ .host = &p->hl, .dev = &p->dl, .h2d = p->h2d, .d2h = p->d2h,
				   .h2d_size = SIZE, .d2h_size = SIZE, .irq = -1, .doorbell = -1 };
	return p;
}

/* Deterministic. */
static uint32_t rnd(void)
{
	static uint64_t x = 88172645463325252ull;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return x >> 32;
}

/* A byte stream of random pieces arrives whole and in order, over many wraps. */
static void h2d_stream(void)
{
	struct pair *p = make();
	uint64_t sent = 0, got = 0;

	while (got < 20u << 20) {
		for (int i = rnd() % 8; i > 0; i--) {
			uint32_t n = 1 + rnd() % (rnd() % 4 ? 200 : PNO_MAX_PAYLOAD);
			uint8_t *at = pno_qp_reserve(&p->host, &n, 1, true);

			if (!at)
				break;
			for (uint32_t k = 0; k < n; k++)
				at[k] = pattern(sent + k);
			pno_qp_commit(&p->host, (struct pno_record){ .op = PNO_OP_SEND, .len = n, .seq = sent });
			sent += n;
		}
		pno_qp_publish(&p->host);
		for (int i = rnd() % 12; i > 0; i--) {
			struct pno_record r;
			uint8_t *at;

			if (!fake_next(&p->dev, &r, &at))
				break;
			CHECK(r.op == PNO_OP_SEND && r.seq == (uint32_t)got);
			for (uint32_t k = 0; k < r.len; k++)
				CHECK(at[k] == pattern(got + k));
			got += r.len;
		}
		fake_release(&p->dev);
	}
	free(p);
}

/* Bulk leaves room for control records; then the ring is full, not broken. */
static void control_room(void)
{
	struct pair *p = make();
	uint32_t n;
	int control = 0;

	for (;;) {
		n = PNO_MAX_PAYLOAD;
		if (!pno_qp_reserve(&p->host, &n, 1, true))
			break;
		pno_qp_commit(&p->host, (struct pno_record){ .op = PNO_OP_SEND, .len = n });
	}
	for (;;) {
		n = 0;
		if (!pno_qp_reserve(&p->host, &n, 0, false))
			break;
		pno_qp_commit(&p->host, (struct pno_record){ .op = PNO_OP_CLOSE });
		control++;
	}
	CHECK(control >= 400);
	CHECK(p->host.prod == SIZE);
	free(p);
}

/* An abandoned reservation leaves nothing behind. */
static void abandon(void)
{
	struct pair *p = make();
	struct pno_record r;
	uint8_t *at;

	for (int i = 0; i < 3000; i++) {
		uint32_t n = 1 + rnd() % PNO_MAX_PAYLOAD;

		if (!pno_qp_reserve(&p->host, &n, 1, true) || rnd() % 2)
			continue;
		n = 1 + rnd() % n;
		pno_qp_commit(&p->host, (struct pno_record){ .op = PNO_OP_SEND, .len = n, .seq = i });
		pno_qp_publish(&p->host);
		CHECK(fake_next(&p->dev, &r, &at) && r.seq == (uint32_t)i && r.len == n);
		fake_release(&p->dev);
	}
	free(p);
}

static struct pair *volatile kept;

/* Ring space goes back in order whatever the order of reading. */
static void hold_and_release(void)
{
	struct pair *p = make();
	struct pno_seg *held[64];
	uint64_t off[64], made = 0, seen = 0;
	unsigned n = 0;

	for (int round = 0; round < 20000; round++) {
		uint8_t data[4096];
		uint32_t len = 1 + rnd() % sizeof data;
		struct pno_record r;
		const uint8_t *payload;
		uint64_t start;

		for (uint32_t k = 0; k < len; k++)
			data[k] = pattern(made + k);
		if (fake_put(&p->dev, (struct pno_record){ .op = PNO_OP_DATA, .len = len }, data)) {
			made += len;
			fake_publish(&p->dev);
		}
		while (n < 64 && pno_qp_next(&p->host, &r, &payload, &start) == 1) {
			held[n] = pno_qp_hold(&p->host, start);
			held[n]->data = payload;
			held[n]->len = r.len;
			off[n++] = seen;
			seen += r.len;
		}
		for (int k = rnd() % 3; k > 0 && n; k--) {
			unsigned i = rnd() % n;

			for (uint32_t b = 0; b < held[i]->len; b++)
				CHECK(held[i]->data[b] == pattern(off[i] + b));
			held[i]->state = PNO_SEG_DONE;
			held[i] = held[--n];
			off[i] = off[n];
		}
		pno_qp_give_back(&p->host);
		CHECK(p->hl.d2h_cons <= p->dl.d2h_prod);
	}
	CHECK(seen > 8u << 20);
	kept = p; /* segments live as long as their queue pair: for ever */
}

/* Everything that a broken DPU may write is refused, nothing is believed. */
static void hostile(void)
{
	static const struct {
		const char *name;
		uint64_t prod;
		struct pno_record r;
	} cases[] = {
		{ "producer more than a ring ahead", SIZE + 16, { .op = PNO_OP_DATA } },
		{ "producer not aligned", 24, { .op = PNO_OP_DATA } },
		{ "record beyond the producer", 16, { .op = PNO_OP_DATA, .len = 1 } },
		{ "record beyond the limit", SIZE, { .op = PNO_OP_DATA, .len = PNO_MAX_PAYLOAD + 1 } },
		{ "padding beyond the producer", 16, { .op = PNO_OP_PAD } },
	};
	struct pno_record r;
	const uint8_t *payload;
	uint64_t start;

	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		struct pair *p = make();

		memcpy(p->d2h, &cases[i].r, sizeof cases[i].r);
		p->dl.d2h_prod = cases[i].prod;
		if (pno_qp_next(&p->host, &r, &payload, &start) != -1) {
			fprintf(stderr, "not refused: %s\n", cases[i].name);
			abort();
		}
		free(p);
	}
	struct pair *p = make();

	/* A record across the end of the ring. */
	p->host.seen = p->host.cons = p->host.dprod = SIZE - 16;
	p->dl.d2h_prod = SIZE + 32;
	r = (struct pno_record){ .op = PNO_OP_DATA, .len = 20 };
	memcpy(p->d2h + SIZE - 16, &r, sizeof r);
	CHECK(pno_qp_next(&p->host, &r, &payload, &start) == -1);
	/* A producer that moves back. */
	p->host.seen = p->host.cons = p->host.dprod = 64;
	p->dl.d2h_prod = 48;
	CHECK(pno_qp_next(&p->host, &r, &payload, &start) == -1);
	/* A consumer that lies gains nothing: neither room nor a crash. */
	p->host.prod = p->host.h2d_cons = 1024;
	static const uint64_t lies[] = { 0, 1040, 1 << 30, ~0ull, 1000 };

	for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
		p->dl.h2d_cons = lies[i];
		pno_qp_has_room(&p->host);
		CHECK(p->host.h2d_cons == 1024);
	}
	free(p);
}

/* Random bytes in ring and control line: an error at worst. */
static void garbage(void)
{
	for (int i = 0; i < 2000; i++) {
		struct pair *p = make();
		struct pno_record r;
		const uint8_t *payload;
		uint64_t start;
		int n = 0;

		for (uint32_t k = 0; k < SIZE; k += 4)
			memcpy(p->d2h + k, &(uint32_t){ rnd() % 3 ? rnd() & 0x00ff00ff : rnd() }, 4);
		p->dl.d2h_prod = (uint64_t)(rnd() % (SIZE + 64)) & ~(rnd() % 8 ? 15ull : 0);
		while (pno_qp_next(&p->host, &r, &payload, &start) == 1 && n++ < 10000)
			CHECK(payload >= p->d2h && payload + r.len <= p->d2h + SIZE);
		free(p);
	}
}

/* Ping-pong where both sides sleep whenever they have nothing: a lost wake-up
 * or doorbell shows as a poll that times out. */
#define ROUNDS 20000

static void must_wake(int fd)
{
	struct pollfd f = { fd, POLLIN, 0 };
	uint64_t n;

	CHECK(real.poll(&f, 1, 5000) == 1);
	CHECK(real.read(fd, &n, sizeof n) == sizeof n);
}

static void *dpu_side(void *arg)
{
	struct pair *p = arg;
	struct pno_record r;
	uint8_t *payload;

	for (uint32_t n = 0; n < ROUNDS;) {
		if (!fake_next(&p->dev, &r, &payload)) {
			if (fake_arm(&p->dev))
				must_wake(p->dev.doorbell);
			continue;
		}
		CHECK(r.seq == n);
		fake_release(&p->dev);
		CHECK(fake_put(&p->dev, (struct pno_record){ .op = PNO_OP_DATA, .seq = n++ }, NULL));
		fake_publish(&p->dev);
	}
	return NULL;
}

static void races(void)
{
	struct pair *p = make();
	pthread_t t;

	p->dev.irq = eventfd(0, 0);
	p->dev.doorbell = p->host.doorbell = eventfd(0, 0);
	CHECK(!pthread_create(&t, NULL, dpu_side, p));
	for (uint32_t n = 0; n < ROUNDS; n++) {
		struct pno_record r;
		const uint8_t *payload;
		uint64_t start;
		uint32_t len = 0;

		CHECK(pno_qp_reserve(&p->host, &len, 0, false));
		pno_qp_commit(&p->host, (struct pno_record){ .op = PNO_OP_SEND, .seq = n });
		pno_qp_publish(&p->host);
		while (pno_qp_next(&p->host, &r, &payload, &start) == 0) {
			pno_qp_arm(&p->host);
			pno_full_fence();
			if (pno_qp_moved(&p->host))
				pno_qp_disarm(&p->host);
			else
				must_wake(p->dev.irq);
		}
		CHECK(r.seq == n);
		pno_qp_give_back(&p->host);
	}
	pthread_join(t, NULL);
	real.close(p->dev.irq);
	real.close(p->dev.doorbell);
	free(p);
}

int main(void)
{
	static const struct {
		const char *name;
		void (*run)(void);
	} tests[] = {
		{ "h2d stream", h2d_stream },   { "control room", control_room },
		{ "abandon", abandon },         { "hold and release", hold_and_release },
		{ "hostile", hostile },         { "garbage", garbage },
		{ "races", races },
	};

	alarm(240);
	pno_start();
	for (size_t i = 0; i < sizeof tests / sizeof tests[0]; i++) {
		tests[i].run();
		printf("ok qp/%s\n", tests[i].name);
	}
	return 0;
}
