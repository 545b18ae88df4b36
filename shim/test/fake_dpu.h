/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The DPU's end of queue pairs, and a small DPU and hostd behind it: a test
 * double for unit tests in one process. It follows docs/protocol.md, not the
 * shim's code, and trusts the shim.
 */
#ifndef FAKE_DPU_H
#define FAKE_DPU_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "../attach.h"

#define CHECK(cond)                                                                        \
	do {                                                                               \
		if (!(cond)) {                                                             \
			fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #cond); \
			abort();                                                           \
		}                                                                          \
	} while (0)

struct fake_qp {
	struct pno_host_line *host;
	struct pno_dev_line *dev;
	uint8_t *h2d, *d2h;
	uint32_t h2d_size, d2h_size;
	uint64_t taken, made, published;
	uint32_t served; /* Arm generation of the last interrupt */
	int irq, doorbell;
};

/* The next record from the host and its payload; false: none. */
bool fake_next(struct fake_qp *q, struct pno_record *r, uint8_t **payload);
/* Gives back everything taken. */
void fake_release(struct fake_qp *q);
/* Writes a record; false: no room. */
bool fake_put(struct fake_qp *q, struct pno_record r, const void *payload);
/* Publishes, then interrupts if the host asks for it. */
void fake_publish(struct fake_qp *q);
/* Asks for a doorbell; true: nothing came meanwhile. */
bool fake_arm(struct fake_qp *q);

/* Ports with a meaning for Connect. */
enum {
	PORT_REFUSED = 1,
	PORT_ECHO = 7,
	PORT_SILENT = 9,   /* takes bytes in, never acknowledges consumption */
	PORT_CHARGEN = 19, /* sends CHARGEN_BYTES and ends */
	PORT_RESET = 20,   /* resets at the first byte */
};
#define CHARGEN_BYTES (3u << 20)

/* Byte i of a generated stream. */
static inline uint8_t pattern(uint64_t i)
{
	return (uint8_t)(i * 7 + (i >> 8) * 13 + (i >> 16));
}

/* Starts hostd and the DPU and sets PNO_HOSTD; stops both. */
void fake_start(unsigned shards, uint32_t ring_size);
void fake_stop(void);
/* Opens a connection to the listener bound to port; the far end echoes. On
 * shard 0, or on any. */
void fake_dial(uint16_t port);
void fake_dial_on(unsigned shard, uint16_t port);
/* Connects a socket to a port of the far end's. */
int fake_connect(uint16_t port);
/* Breaks the protocol on channel 0, or ends the session as hostd would. */
void fake_violate(void);
void fake_lose(void);

#endif
