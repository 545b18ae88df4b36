// SPDX-License-Identifier: Apache-2.0

//go:build cgo && linux

/*
 * libcrypto keeps the numbers of a private key in its secure heap, but not all
 * that comes of them: what its decoders read stays in memory that is freed and
 * not wiped, and the primes are copied for modular arithmetic (BN_MONT_CTX) into
 * ordinary memory. So libcrypto allocates through functions of ours, and while a
 * key is loaded those take memory from an arena of ours. All that lasts is made
 * then: pno_lc_load signs once with each key.
 *
 * The arena is a range of addresses, reserved at once, so that one comparison
 * tells whose a block is, and made usable piece by piece, from the bottom. Blocks
 * have sizes that are powers of two, and a list of free ones for each. Keys are
 * loaded rarely: one lock does.
 *
 * libcrypto's heap has a fixed size and serves operations as well: a key that
 * took its last bytes would end the signatures of all keys. So a part of it is
 * left to operations, and a key that would reach into that is not loaded.
 */
#include "locked.h"

#include <openssl/crypto.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

#define RESERVED (1ul << 30)
#define PIECE    (256ul << 10) /* at least, that becomes usable at once */
#define SMALLEST 6             /* blocks of 64 bytes, of which HEAD are ours */
#define CLASSES  24
#define HEAD     16 /* keeps the alignment that malloc gives */
#define LEAST    (4ul << 20)  /* of libcrypto's heap, unless less is asked for */
#define MOST     (32ul << 20) /* unless more is asked for */

struct block {
	uint64_t class;
	struct block *next; /* while it is free */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint8_t *base; /* of the range; NULL: there is none */
static size_t used, usable, held; /* held: by blocks in use */
static size_t heap; /* of libcrypto */
static struct block *spare[CLASSES];
static const char *unlocked;
static _Thread_local bool confined;

static bool ours(const void *p)
{
	return base && (size_t)((const uint8_t *)p - base) < RESERVED;
}

/* Makes room for more; locked. */
static bool extend(size_t size)
{
	size_t more = size > PIECE ? (size + PIECE - 1) / PIECE * PIECE : PIECE;
	uint8_t *at = base + usable;

	if (usable + more > RESERVED || mprotect(at, more, PROT_READ | PROT_WRITE))
		return false;
	if (mlock(at, more))
		unlocked = "memory for private keys cannot be locked; raise LimitMEMLOCK (ulimit -l)";
	if (madvise(at, more, MADV_DONTDUMP) || madvise(at, more, MADV_WIPEONFORK))
		unlocked = "memory for private keys cannot be kept out of core dumps";
	usable += more;
	return true;
}

static void *take(size_t size)
{
	struct block *b = NULL;
	uint64_t class = 0;

	while (class < CLASSES && (1ul << (class + SMALLEST)) - HEAD < size)
		class++;
	if (class == CLASSES)
		return NULL;
	size = 1ul << (class + SMALLEST);
	pthread_mutex_lock(&lock);
	if (spare[class]) {
		b = spare[class];
		spare[class] = b->next;
	} else if (base && (used + size <= usable || extend(used + size - usable))) {
		b = (struct block *)(base + used);
		used += size;
	}
	if (b)
		held += size;
	pthread_mutex_unlock(&lock);
	if (!b)
		return NULL;
	b->class = class;
	b->next = NULL;
	return (uint8_t *)b + HEAD;
}

static size_t room(const void *p)
{
	return (1ul << (((const struct block *)((const uint8_t *)p - HEAD))->class + SMALLEST)) - HEAD;
}

static void give(void *p)
{
	struct block *b = (struct block *)((uint8_t *)p - HEAD);

	OPENSSL_cleanse(p, room(p));
	pthread_mutex_lock(&lock);
	held -= 1ul << (b->class + SMALLEST);
	b->next = spare[b->class];
	spare[b->class] = b;
	pthread_mutex_unlock(&lock);
}

static void *allocate(size_t size, const char *file, int line)
{
	(void)file, (void)line;
	return confined ? take(size) : malloc(size);
}

static void release(void *p, const char *file, int line)
{
	(void)file, (void)line;
	if (p && ours(p))
		give(p);
	else
		free(p);
}

/* What is confined stays so; what is not may become so. */
static void *reallocate(void *p, size_t size, const char *file, int line)
{
	bool mine = p && ours(p);
	void *to;

	if (!mine && (!confined || p))
		return realloc(p, size);
	if (mine && !size) {
		give(p);
		return NULL;
	}
	if (mine && size <= room(p))
		return p;
	to = take(size);
	if (to && mine) {
		memcpy(to, p, room(p));
		give(p);
	}
	(void)file, (void)line;
	return to;
}

/* Before libcrypto has allocated anything, or it keeps to malloc. */
__attribute__((constructor)) static void begin(void)
{
	void *at = mmap(NULL, RESERVED, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (at == MAP_FAILED)
		unlocked = "there are no addresses for private keys";
	else if (CRYPTO_set_mem_functions(allocate, reallocate, release))
		base = at;
	else
		unlocked = "libcrypto was in use before its memory could be taken care of";
}

void pno_confine(void)
{
	confined = base;
}

void pno_release(void)
{
	confined = false;
}

const char *pno_unlocked(void)
{
	const char *why;

	pthread_mutex_lock(&lock);
	why = unlocked;
	pthread_mutex_unlock(&lock);
	return why;
}

/* Half of what may be locked, for the arena needs as much again. */
static size_t default_heap(void)
{
	struct rlimit limit;
	size_t size = MOST;

	if (getrlimit(RLIMIT_MEMLOCK, &limit))
		return LEAST;
	while (size > LEAST && size > limit.rlim_cur / 2)
		size /= 2;
	return size;
}

bool pno_secure_heap(size_t size)
{
	bool there;

	pthread_mutex_lock(&lock);
	if (!heap && !CRYPTO_secure_malloc_initialized()) {
		heap = size ? size : default_heap();
		switch (CRYPTO_secure_malloc_init(heap, 16)) {
		case 1:
			break;
		case 0:
			heap = 0;
			/* fall through */
		default:
			unlocked = "libcrypto's heap for private keys cannot be locked; raise LimitMEMLOCK (ulimit -l)";
		}
	}
	there = heap >= size;
	pthread_mutex_unlock(&lock);
	return there;
}

/* What operations may need: of libcrypto's heap each thread has a generator of
 * random numbers in it, and what it computes with. */
static size_t headroom(void)
{
	return heap / 8;
}

bool pno_room(void)
{
	bool room;

	pthread_mutex_lock(&lock);
	room = (!heap || CRYPTO_secure_used() + headroom() <= heap) && (!base || held + headroom() <= RESERVED);
	pthread_mutex_unlock(&lock);
	return room;
}

void pno_heap(size_t *in_use, size_t *size)
{
	pthread_mutex_lock(&lock);
	*size = heap;
	pthread_mutex_unlock(&lock);
	*in_use = *size ? CRYPTO_secure_used() : 0;
}
