/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Messages to and from the key agent, as protocol.h has them.
 *
 * The structs are little endian without holes, and so is every machine this is
 * built for, so they are copied to and from the packet as they are. A packet
 * that came in is the thread's own copy; each field is still read once, from a
 * struct that was copied out, and each length is checked against what is there
 * before it is used.
 */
#include <ctype.h>
#include <string.h>

#include "wire.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the protocol is little endian");

static struct pno_agent_msg head(uint16_t type, size_t size)
{
	return (struct pno_agent_msg){
		.magic = PNO_AGENT_MAGIC, .version = PNO_AGENT_VERSION, .type = type, .size = (uint32_t)size,
	};
}

static size_t pad8(size_t n)
{
	return (n + 7) & ~(size_t)7;
}

void pno_wire_hello(struct pno_agent_hello *m, uint32_t pid, const char *name)
{
	size_t n = strnlen(name, sizeof m->name - 1);

	memset(m, 0, sizeof *m);
	m->h = head(PNO_AGENT_HELLO, sizeof *m);
	m->pid = pid;
	memcpy(m->name, name, n);
}

size_t pno_wire_op(uint8_t *buf, const struct pno_request *r)
{
	size_t size = sizeof(struct pno_agent_op) + pad8(r->len);
	struct pno_agent_op op = {
		.h = head(PNO_AGENT_OP, size), .scheme = r->scheme, .input = r->input, .len = (uint32_t)r->len,
	};

	memcpy(op.key_id, r->key_id, sizeof op.key_id);
	memset(buf, 0, size);
	memcpy(buf, &op, sizeof op);
	memcpy(buf + sizeof op, r->data, r->len);
	return size;
}

void pno_wire_stamp(uint8_t *op, uint64_t id, uint32_t timeout_us)
{
	memcpy(op + offsetof(struct pno_agent_op, h.id), &id, sizeof id);
	memcpy(op + offsetof(struct pno_agent_op, timeout_us), &timeout_us, sizeof timeout_us);
}

static bool welcome(const uint8_t *buf, size_t size, struct pno_message *m)
{
	struct pno_agent_welcome w;

	if (size != sizeof w)
		return false;
	memcpy(&w, buf, sizeof w);
	m->max_inflight = w.max_inflight;
	m->max_timeout_us = w.max_timeout_us;
	return w.max_inflight > 0;
}

/* The text goes to logs: no control characters. */
static bool refused(const uint8_t *buf, size_t size, struct pno_message *m)
{
	struct pno_agent_refused r;
	size_t n;

	if (size != sizeof r)
		return false;
	memcpy(&r, buf, sizeof r);
	m->err = r.err;
	n = strnlen(r.text, sizeof r.text);
	for (size_t i = 0; i < n; i++)
		m->text[i] = isprint((unsigned char)r.text[i]) ? r.text[i] : '?';
	m->text[n] = 0;
	return true;
}

static bool result(const uint8_t *buf, size_t size, struct pno_message *m)
{
	struct pno_agent_result r;

	if (size < sizeof r)
		return false;
	memcpy(&r, buf, sizeof r);
	if (r.len > PNO_AGENT_OUTPUT || size != sizeof r + pad8(r.len) || !r.status ||
	    (r.status == PNO_STATUS_OK) != (r.len > 0))
		return false;
	m->status = r.status;
	m->len = r.len;
	m->data = buf + sizeof r;
	for (size_t i = r.len; i < pad8(r.len); i++)
		if (m->data[i])
			return false;
	return true;
}

size_t pno_wire_next(const uint8_t *buf, size_t n, struct pno_message *m)
{
	struct pno_agent_msg h;
	bool ok = false;

	if (n < sizeof h)
		return 0;
	memcpy(&h, buf, sizeof h);
	if (h.magic != PNO_AGENT_MAGIC || h.version != PNO_AGENT_VERSION || h.reserved ||
	    h.size < sizeof h || h.size > n || h.size % 8)
		return 0;
	m->type = h.type;
	m->id = h.id;
	switch (h.type) {
	case PNO_AGENT_WELCOME:
		ok = welcome(buf, h.size, m);
		break;
	case PNO_AGENT_REFUSED:
		ok = refused(buf, h.size, m);
		break;
	case PNO_AGENT_RESULT:
		ok = result(buf, h.size, m);
		break;
	}
	return ok ? h.size : 0;
}
