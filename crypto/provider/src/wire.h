/* SPDX-License-Identifier: Apache-2.0 */

/* Messages to and from the key agent; see wire.c. */
#ifndef PNO_WIRE_H
#define PNO_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "protocol.h"

/* What is asked of a key. */
struct pno_request {
	const uint8_t *key_id;
	uint16_t scheme;
	uint16_t input;
	const uint8_t *data;
	size_t len; /* 1 to PNO_AGENT_INPUT */
};

#define PNO_OP_MAX (sizeof(struct pno_agent_op) + PNO_AGENT_INPUT)

/* A message that came in, checked. */
struct pno_message {
	uint16_t type; /* PNO_AGENT_WELCOME, …_REFUSED or …_RESULT */
	uint64_t id;
	uint32_t max_inflight, max_timeout_us; /* welcome */
	int32_t err;                           /* refused */
	char text[PNO_AGENT_TEXT + 1];         /* refused; printable */
	uint16_t status, len;                  /* result */
	const uint8_t *data;                   /* result: len bytes inside the packet */
};

void pno_wire_hello(struct pno_agent_hello *m, uint32_t pid, const char *name);
/* The size of the message, in buf of PNO_OP_MAX bytes. */
size_t pno_wire_op(uint8_t *buf, const struct pno_request *r);
/* Fills in what is known only when the message is sent. */
void pno_wire_stamp(uint8_t *op, uint64_t id, uint32_t timeout_us);
/* Takes the first message off n bytes and returns its size; 0: these are no messages. */
size_t pno_wire_next(const uint8_t *buf, size_t n, struct pno_message *m);

#endif
