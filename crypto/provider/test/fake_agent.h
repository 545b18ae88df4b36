/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A key agent in a process of its own, with keys that only it uses: the tests
 * get references. What it does wrong is told through shared memory.
 */
#ifndef PNO_FAKE_AGENT_H
#define PNO_FAKE_AGENT_H

#include <stdatomic.h>
#include <stddef.h>

enum { FAKE_RSA, FAKE_P256, FAKE_P384, FAKE_ED25519, FAKE_KEYS };

enum fake_mode { FAKE_RIGHT, FAKE_GARBAGE, FAKE_SILENT, FAKE_CLOSE, FAKE_REFUSE, FAKE_TWO_ANSWERS };

struct fake_state {
	_Atomic int mode;
	_Atomic int delay_ms;  /* of each operation, one after the other */
	_Atomic int inflight;  /* what welcome says */
	_Atomic int hellos, ops, unexpected;
	char path[80];
};

extern struct fake_state *fake;

void fake_begin(void);  /* makes the keys; before anything else */
void fake_start(void);  /* the agent's process */
void fake_kill(void);
void fake_end(void);
const char *fake_ref(int key);  /* the PEM of a reference */
const char *fake_cert(int key); /* and a certificate of it, PEM */

#endif
