/* SPDX-License-Identifier: Apache-2.0 */

/* The DPU's end of a queue pair, for tests. */
#include <string.h>
#include <unistd.h>

#include "fake_dpu.h"
#include "real.h"
#include "sync.h"

static uint64_t space(uint32_t n)
{
	return (16 + n + 15) & ~15ull;
}

bool fake_next(struct fake_qp *q, struct pno_record *r, uint8_t **payload)
{
	uint64_t prod = pno_load64(&q->host->h2d_prod);

	while (q->taken != prod) {
		uint64_t pos = q->taken & (q->h2d_size - 1);

		CHECK(prod - q->taken <= q->h2d_size);
		memcpy(r, q->h2d + pos, sizeof *r);
		if (r->op == PNO_OP_PAD) {
			CHECK(pno_load64(&q->host->h2d_pad) == q->taken);
			q->taken += q->h2d_size - pos;
			continue;
		}
		CHECK(r->len <= PNO_MAX_PAYLOAD);
		CHECK(pos + space(r->len) <= q->h2d_size);
		*payload = q->h2d + pos + 16;
		q->taken += space(r->len);
		CHECK(q->taken <= prod);
		return true;
	}
	return false;
}

void fake_release(struct fake_qp *q)
{
	if (q->dev->h2d_cons != q->taken)
		pno_store64(&q->dev->h2d_cons, q->taken);
}

bool fake_put(struct fake_qp *q, struct pno_record r, const void *payload)
{
	uint64_t cons = pno_load64(&q->host->d2h_cons);
	uint64_t pos = q->made & (q->d2h_size - 1), tail = q->d2h_size - pos;
	uint64_t need = space(r.len) + (space(r.len) > tail ? tail : 0);

	CHECK(cons <= q->published);
	if (q->d2h_size - (q->made - cons) < need)
		return false;
	if (space(r.len) > tail) {
		memset(q->d2h + pos, 0, 16); /* OpPad */
		q->made += tail;
		pos = 0;
	}
	memcpy(q->d2h + pos, &r, sizeof r);
	if (r.len)
		memcpy(q->d2h + pos + 16, payload, r.len);
	q->made += space(r.len);
	return true;
}

void fake_publish(struct fake_qp *q)
{
	uint64_t one = 1;
	uint32_t arm;
	bool news;

	q->published = q->made;
	pno_store64(&q->dev->d2h_prod, q->made);
	pno_full_fence();
	arm = pno_load32(&q->host->arm);
	news = q->made > pno_load64(&q->host->d2h_seen) ||
	       (pno_load32(&q->host->space_want) &&
		pno_load64(&q->host->h2d_prod) - q->dev->h2d_cons <= q->h2d_size / 2);
	if ((arm & 1) && arm != q->served && news) {
		q->served = arm;
		if (q->irq >= 0)
			CHECK(real.write(q->irq, &one, sizeof one) == sizeof one);
	}
}

bool fake_arm(struct fake_qp *q)
{
	pno_store32(&q->dev->db_arm, q->dev->db_arm + 1 + (q->dev->db_arm & 1));
	pno_full_fence();
	return pno_load64(&q->host->h2d_prod) == q->taken;
}
