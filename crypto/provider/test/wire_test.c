/* SPDX-License-Identifier: Apache-2.0 */

/* What the agent may send, bent in every way that a deterministic generator
 * finds: a message is taken whole and within the packet, or not at all. */
#include <string.h>

#include "check.h"
#include "wire.h"

#define ROUNDS 400000

static uint64_t state = 88172645463325252u;

static uint32_t rnd(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return (uint32_t)(state >> 32);
}

static struct pno_agent_msg head(uint16_t type, size_t size)
{
	return (struct pno_agent_msg){ PNO_AGENT_MAGIC, PNO_AGENT_VERSION, type, (uint32_t)size, 0, rnd() };
}

/* A right message of a random type; its size. */
static size_t sample(uint8_t *buf)
{
	struct pno_agent_welcome w = { .max_inflight = 1 + rnd() % 100, .max_timeout_us = rnd() };
	struct pno_agent_refused no = { .err = 13, .text = "no\twithout\x1b[31m reason" };
	struct pno_agent_result r = { .status = PNO_STATUS_OK, .len = (uint16_t)(1 + rnd() % PNO_AGENT_OUTPUT) };
	size_t size = sizeof r + ((r.len + 7u) & ~7u);

	switch (rnd() % 3) {
	case 0:
		w.h = head(PNO_AGENT_WELCOME, sizeof w);
		memcpy(buf, &w, sizeof w);
		return sizeof w;
	case 1:
		no.h = head(PNO_AGENT_REFUSED, sizeof no);
		memset(no.text + 30, rnd() % 2 ? 'x' : 0, sizeof no.text - 30); /* perhaps without an end */
		memcpy(buf, &no, sizeof no);
		return sizeof no;
	}
	r.h = head(PNO_AGENT_RESULT, size);
	memset(buf, 0, size);
	memcpy(buf, &r, sizeof r);
	memset(buf + sizeof r, 0xa5, r.len);
	return size;
}

static void check(const struct pno_message *m, const uint8_t *buf, size_t n, size_t size)
{
	CHECK(size <= n && size % 8 == 0 && size >= sizeof(struct pno_agent_msg));
	switch (m->type) {
	case PNO_AGENT_WELCOME:
		CHECK(m->max_inflight > 0);
		break;
	case PNO_AGENT_REFUSED:
		CHECK(strlen(m->text) <= PNO_AGENT_TEXT && !strpbrk(m->text, "\t\x1b\n"));
		break;
	case PNO_AGENT_RESULT:
		CHECK(m->len <= PNO_AGENT_OUTPUT && m->data >= buf && m->data + m->len <= buf + size);
		CHECK((m->status == PNO_STATUS_OK) == (m->len > 0));
		break;
	default:
		CHECK(!"a known type");
	}
}

static void bent(void)
{
	long right = 0, taken = 0;

	for (int i = 0; i < ROUNDS; i++) {
		uint8_t local[2048] = { 0 };
		size_t n = sample(local), size;
		struct pno_message m;
		uint8_t *buf;

		for (uint32_t bend = rnd() % 4; bend; bend--) {
			uint8_t *at = &local[rnd() % (rnd() % 2 && n > 64 ? 64 : n)];

			*at = (uint8_t)(rnd() % 2 ? rnd() : *at ^ 1u << rnd() % 8);
		}
		if (rnd() % 4 == 0)
			n = rnd() % (n + 64);
		/* Of exactly this size, so that a sanitizer sees each byte too far. */
		CHECK((buf = malloc(n ? n : 1)));
		memcpy(buf, local, n);
		size = pno_wire_next(buf, n, &m);
		right++;
		if (size) {
			taken++;
			check(&m, buf, n, size);
		}
		free(buf);
	}
	CHECK(taken > right / 10 && taken < right);
}

static void op(void)
{
	uint8_t key[PNO_KEY_ID_LEN] = { 7 }, data[PNO_AGENT_INPUT], buf[PNO_OP_MAX];
	struct pno_agent_op o;

	memset(data, 0x5a, sizeof data);
	for (size_t len = 1; len <= sizeof data; len++) {
		struct pno_request r = { key, PNO_ED25519, PNO_INPUT_MESSAGE, data, len };
		size_t size = pno_wire_op(buf, &r);

		pno_wire_stamp(buf, 0x1122334455667788u, 99);
		memcpy(&o, buf, sizeof o);
		CHECK(size == sizeof o + ((len + 7) & ~(size_t)7) && o.h.size == size && o.len == len);
		CHECK(o.h.id == 0x1122334455667788u && o.timeout_us == 99 && o.scheme == PNO_ED25519 && o.key_id[0] == 7);
		CHECK(!memcmp(buf + sizeof o, data, len));
		for (size_t i = sizeof o + len; i < size; i++)
			CHECK(!buf[i]);
	}
}

int main(void)
{
	puts("wire");
	bent();
	op();
	return 0;
}
