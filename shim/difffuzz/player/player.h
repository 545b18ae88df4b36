/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What the parts of the player share. See main.c for the theory.
 */
#ifndef PLAYER_H
#define PLAYER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/types.h>

#define SLOTS 16
#define MAX_WORDS 24

struct op {
	char *word[MAX_WORDS]; /* word[0] is the name; NULL beyond n */
	int n;
};

struct call {
	const char *name;
	int args; /* at least */
	void (*run)(const struct op *op);
};

/* Each ends with a NULL name. */
extern const struct call socket_calls[], option_calls[], io_calls[], ready_calls[];

/* Appends to the transcript. */
void say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* A result: the number, or the name of errno. */
void say_rc(long rc);
/* any4, lo4, any6, lo6 and mapped; its length. */
socklen_t address(const char *name, uint16_t port, struct sockaddr_storage *ss);
void say_addr(const struct sockaddr *sa, socklen_t len);
/* Bytes received: their number and a hash of them. */
void say_data(const void *data, ssize_t n);
void say_events(uint32_t events);

/* The descriptor in a slot; one that is surely closed if there is none. */
int slot_fd(const char *word);
int slot_index(const char *word);
/* A new descriptor (or -1) goes to a slot. Says the result. */
void slot_put(const char *word, int fd);
void slot_clear(const char *word);
/* The port that the socket in a slot was bound to; kept beyond its close. */
void slot_set_port(int slot, uint16_t port);
uint16_t slot_port(const char *word);

long number(const char *word);
/* Words such as peek|dontwait. */
int message_flags(const char *word);
uint32_t event_bits(const char *word);
int creation_flags(const char *word);
bool has(const char *word, const char *flag);

/* Milliseconds that an await may take. */
extern int await_limit;

/* The next n bytes of the pattern that everything sent is taken from. */
void *pattern(size_t n);

#define BUFFER (256 * 1024)
extern __thread uint8_t buffer[BUFFER];

#endif
