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
				   .h2d_size = SIZE, .d2h_size = SIZE, .lap = PNO_EARLY_LAP, .doorbell = -1 };
	p->dev = (struct fake_qp){ .host = &p->hl, .dev = &p->dl, .h2d = p->h2d, .d2h = p->d2h,
				   .h2d_size = SIZE, .d2h_size = SIZE, .irq = -1, .doorbell = -1 };
	return p;
}

#define LARGE (1u << 20)

/* With a ring to the DPU that is worth not going round. */
static struct pair *make_large(void)
{
	struct pair *p = make();

	p->host.h2d = p->dev.h2d = calloc(1, LARGE);
	CHECK(p->host.h2d);
	p->host.h2d_size = p->dev.h2d_size = LARGE;
	return p;
}

static void drop_large(struct pair *p)
{
	free(p->host.h2d);
	free(p);
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
static void stream(struct pair *p)
{
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
}

static void h2d_stream(void)
{
	struct pair *p = make();

	stream(p);
	free(p);
	p = make_large();
	stream(p);
	drop_large(p);
}

/* One record of n bytes, in the usual way. False: no room. */
static bool put(struct pair *p, uint32_t n, uint32_t seq)
{
	struct pno_record r = { .op = PNO_OP_SEND, .len = n, .seq = seq };
	uint8_t *at = pno_qp_reserve_here(&p->host, n);

	if (at) {
		memset(at, 0xee, n);
		pno_qp_commit_here(&p->host, r);
		return true;
	}
	at = pno_qp_reserve(&p->host, &n, n, false);
	if (!at)
		return false;
	CHECK(n == r.len);
	memset(at, 0xee, n);
	pno_qp_commit(&p->host, r);
	return true;
}

static uint32_t take_all(struct pair *p)
{
	struct pno_record r;
	uint32_t n = 0;
	uint8_t *at;

	pno_qp_publish(&p->host);
	while (fake_next(&p->dev, &r, &at))
		n++;
	fake_release(&p->dev);
	return n;
}

/* Whose records are taken soon goes many laps, and leaves most of the ring
 * untouched: also with records that end exactly where one looks. */
static void light_use(void)
{
	static const uint32_t sizes[] = { 0, 1, 48, 100, 112, 496, 5000 };

	for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
		struct pair *p = make_large();
		uint64_t limit = PNO_EARLY_LAP + PNO_LAP_STEP + 4 * pno_record_space(sizes[i]);
		uint64_t last = 0;

		while (p->host.prod < 20ull * LARGE) {
			for (uint32_t n = 0; n < 3; n++)
				CHECK(put(p, sizes[i], n));
			CHECK(take_all(p) == 3);
		}
		for (uint64_t k = 0; k < LARGE; k++)
			if (p->host.h2d[k])
				last = k;
		CHECK(last < limit && last > PNO_EARLY_LAP / 2);
		CHECK(p->host.lap == PNO_EARLY_LAP);
		drop_large(p);
	}
}

/* More at once than an early end of a lap leaves room for: it is in the way a
 * few times, and then not any more. */
static void bursts(void)
{
	struct pair *p = make_large();
	int short_of = 0;

	for (int round = 0; round < 200; round++) {
		for (int i = rnd() % 60; i > 0; i--) {
			CHECK(put(p, 4000, i));
			take_all(p);
		}
		for (int left = 200; left > 0;) { /* 784 KiB */
			if (put(p, 4000, left)) {
				left--;
				continue;
			}
			short_of++;
			take_all(p);
		}
		take_all(p);
	}
	CHECK(short_of > 0 && short_of <= 3);
	drop_large(p);
}

/* A datagram of several records, for which there is room, gets it, also where a
 * lap ends. */
static void promises(void)
{
	struct pair *p = make_large();

	for (int i = 0; i < 2000; i++) {
		uint32_t left = PNO_MAX_DGRAM + sizeof(struct pno_dgram);

		for (uint32_t n = rnd() % 4; n > 0; n--)
			CHECK(put(p, rnd() % 3000, n));
		CHECK(pno_qp_fits(&p->host, left));
		for (uint32_t n; left; left -= n) {
			n = left < PNO_MAX_PAYLOAD ? left : PNO_MAX_PAYLOAD;
			CHECK(pno_qp_reserve(&p->host, &n, n, false));
			pno_qp_commit(&p->host, (struct pno_record){ .op = PNO_OP_SEND_DGRAM, .len = n });
		}
		if (rnd() % 2)
			take_all(p);
		else if (!pno_qp_fits(&p->host, PNO_MAX_DGRAM + 20000))
			take_all(p);
	}
	drop_large(p);
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
		{ "h2d stream", h2d_stream },   { "light use", light_use },
		{ "bursts", bursts },           { "promises", promises },
		{ "control room", control_room },
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
