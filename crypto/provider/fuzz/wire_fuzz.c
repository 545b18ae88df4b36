/* SPDX-License-Identifier: Apache-2.0 */

/* What an agent may send: a packet is taken apart into messages that lie within
 * it, or not at all. */
#include <stdlib.h>
#include <string.h>

#include "wire.h"

#define MUST(cond) do { if (!(cond)) abort(); } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void check(const struct pno_message *m, const uint8_t *buf, size_t size)
{
	switch (m->type) {
	case PNO_AGENT_WELCOME:
		MUST(m->max_inflight > 0);
		break;
	case PNO_AGENT_REFUSED:
		MUST(strlen(m->text) <= PNO_AGENT_TEXT);
		break;
	case PNO_AGENT_RESULT:
		MUST(m->len <= PNO_AGENT_OUTPUT && m->data >= buf && m->data + m->len <= buf + size);
		MUST((m->status == PNO_STATUS_OK) == (m->len > 0));
		break;
	default:
		abort();
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct pno_message m;
	size_t size;

	for (; n && (size = pno_wire_next(data, n, &m)); data += size, n -= size) {
		MUST(size <= n && size % 8 == 0);
		check(&m, data, size);
	}
	return 0;
}
