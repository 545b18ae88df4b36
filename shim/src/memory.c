/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The shim's own memory.
 *
 * send, recv, accept, close and poll may be called in a signal handler, which
 * may have interrupted malloc: so they must not call it. Blocks come in sizes
 * of powers of two and one and a half times that, cut from large pieces of the
 * kernel's memory, and go back to a list of their size. What is larger than
 * PNO_LARGEST is the kernel's, and goes back to it.
 *
 * Under AddressSanitizer it is malloc after all, so that misuse is found.
 */
#include "memory.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "sync.h"

#define SMALLEST_LOG 5
#define SIZES        22
#define PIECE        (1u << 20)

/* Before each block, which is as aligned as this: nothing that is kept in one
 * asks for more. */
struct block {
	uint64_t size;        /* which list; from SIZES on: how many bytes the kernel gave */
	struct block *next[]; /* in that list; in use, the user's */
};
_Static_assert(sizeof(struct block) == 8, "a small option takes 32 bytes");

static struct block *lists[SIZES];
static uint8_t *piece, *piece_end;
static pno_lock_t memory_lock; /* a leaf */

static size_t bytes_of(size_t size)
{
	size_t n = 1ul << (SMALLEST_LOG + size / 2);

	return size % 2 ? n + n / 2 : n;
}

static size_t size_for(size_t n)
{
	size_t size = 0;

	if (n > 1u << SMALLEST_LOG)
		size = 2 * (63 - __builtin_clzl(n - 1) - SMALLEST_LOG);
	while (bytes_of(size) < n)
		size++;
	return size;
}

static void *map(size_t n)
{
	void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

static struct block *cut(size_t size)
{
	size_t n = bytes_of(size);
	struct block *b;

	if ((size_t)(piece_end - piece) < n) {
		piece = map(PIECE); /* what is left of the former one is not worth keeping */
		piece_end = piece ? piece + PIECE : NULL;
		if (!piece)
			return NULL;
	}
	b = (struct block *)piece;
	piece += n;
	b->size = size;
	return b;
}

static void *alloc(size_t n)
{
	struct block *b;
	size_t size;

	if (n > SIZE_MAX / 2)
		return NULL;
	n += sizeof *b;
	if (n > PNO_LARGEST + sizeof *b) {
		b = map(n);
		if (!b)
			return NULL;
		b->size = n;
		return b + 1;
	}
	size = size_for(n);
	pno_lock(&memory_lock);
	b = lists[size];
	if (b)
		lists[size] = b->next[0];
	else
		b = cut(size);
	pno_unlock(&memory_lock);
	return b ? b + 1 : NULL;
}

static void release(void *p)
{
	struct block *b = (struct block *)p - 1;

	if (b->size >= SIZES) {
		munmap(b, b->size);
		return;
	}
	pno_lock(&memory_lock);
	b->next[0] = lists[b->size];
	lists[b->size] = b;
	pno_unlock(&memory_lock);
}

#if defined(__SANITIZE_ADDRESS__)
#define OWN 0
#else
#define OWN 1
#endif

void *pno_alloc(size_t n)
{
	return OWN ? alloc(n) : malloc(n);
}

void *pno_calloc(size_t n, size_t size)
{
	size_t all;
	void *p;

	if (!OWN)
		return calloc(n, size);
	if (__builtin_mul_overflow(n, size, &all))
		return NULL;
	p = alloc(all);
	return p ? memset(p, 0, all) : NULL;
}

void pno_free(void *p)
{
	if (!OWN)
		free(p);
	else if (p)
		release(p);
}

void pno_memory_lock(void)
{
	pno_lock(&memory_lock);
}

void pno_memory_unlock(void)
{
	pno_unlock(&memory_lock);
}
