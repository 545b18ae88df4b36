/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Readiness: epoll, poll, select, and waiting for what must come.
 */
#include "player.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <time.h>

static const struct {
	const char *name;
	uint32_t bit;
} events[] = {
	{ "in", EPOLLIN }, { "pri", EPOLLPRI }, { "out", EPOLLOUT }, { "err", EPOLLERR }, { "hup", EPOLLHUP },
	{ "rdnorm", EPOLLRDNORM }, { "rdband", EPOLLRDBAND }, { "wrnorm", EPOLLWRNORM }, { "wrband", EPOLLWRBAND },
	{ "nval", POLLNVAL }, { "rdhup", EPOLLRDHUP },
	{ "exclusive", EPOLLEXCLUSIVE }, { "oneshot", EPOLLONESHOT }, { "et", EPOLLET },
};

#define EVENTS (sizeof events / sizeof events[0])

uint32_t event_bits(const char *word)
{
	uint32_t bits = 0;

	for (size_t i = 0; i < EVENTS; i++)
		if (has(word, events[i].name))
			bits |= events[i].bit;
	return bits;
}

void say_events(uint32_t bits)
{
	const char *comma = "";

	for (size_t i = 0; i < EVENTS; i++) {
		if (!(bits & events[i].bit))
			continue;
		say("%s%s", comma, events[i].name);
		comma = "|";
		bits &= ~events[i].bit;
	}
	if (bits)
		say("%s%#x", comma, bits);
}

static void do_epoll(const struct op *op)
{
	slot_put(op->word[1], has(op->word[2], "cloexec") ? epoll_create1(EPOLL_CLOEXEC) : epoll_create(1));
}

/* ctl E add|mod|del S EVENTS DATA */
static void do_ctl(const struct op *op)
{
	int how = !strcmp(op->word[2], "add") ? EPOLL_CTL_ADD : !strcmp(op->word[2], "mod") ? EPOLL_CTL_MOD : EPOLL_CTL_DEL;
	struct epoll_event ev = { .events = event_bits(op->word[4]), .data.u64 = number(op->word[5]) };

	say_rc(epoll_ctl(slot_fd(op->word[1]), how, slot_fd(op->word[3]), &ev));
}

#define ROUNDS 40
#define SEEN 64
#define ONCE (1ull << 32)

static int by_data(const void *a, const void *b)
{
	const struct epoll_event *x = a, *y = b;

	return x->data.u64 < y->data.u64 ? -1 : x->data.u64 > y->data.u64;
}

static struct timespec timespec_of(const char *word)
{
	return (struct timespec){ .tv_nsec = number(word) * 1000000 };
}

static int first_wait(const struct op *op, int fd, struct epoll_event *ev, int room)
{
	struct timespec t = timespec_of(op->word[2]);

	if (op->word[3])
		return epoll_pwait2(fd, ev, room, &t, NULL);
	return epoll_wait(fd, ev, room, number(op->word[2]));
}

/*
 * epwait E MS [2]: what epoll_wait (epoll_pwait2) says, and goes on saying.
 *
 * The order of the events is nobody's promise, and not either that one call
 * returns all: it is made again and again, and what came is put together. What
 * came once (edges) is told from what came again.
 */
static void do_epwait(const struct op *op)
{
	struct epoll_event seen[SEEN], ev[32];
	int count[SEEN] = { 0 }, nseen = 0, fd = slot_fd(op->word[1]);
	int n = first_wait(op, fd, ev, 32);

	if (n <= 0) {
		say_rc(n);
		return;
	}
	for (int round = 0; round < ROUNDS && n > 0; round++) {
		for (int i = 0; i < n; i++) {
			int k = 0;

			while (k < nseen && seen[k].data.u64 != ev[i].data.u64)
				k++;
			if (k == SEEN)
				continue;
			if (k == nseen)
				seen[nseen++] = (struct epoll_event){ .data = ev[i].data };
			seen[k].events |= ev[i].events;
			count[k]++;
		}
		n = epoll_wait(fd, ev, 32, 0);
	}
	for (int k = 0; k < nseen; k++)
		if (count[k] == 1)
			seen[k].data.u64 |= ONCE;
	qsort(seen, nseen, sizeof seen[0], by_data);
	for (int k = 0; k < nseen; k++) {
		say(" %llu:", (unsigned long long)(seen[k].data.u64 & ~ONCE));
		say_events(seen[k].events);
		if (seen[k].data.u64 & ONCE)
			say(" once");
	}
}

/* poll MS SLOT EVENTS [SLOT EVENTS…], and ppoll. */
static void do_poll(const struct op *op)
{
	struct timespec t = timespec_of(op->word[1]);
	struct pollfd p[MAX_WORDS];
	int n = 0, rc;

	for (int i = 2; i + 1 < op->n; i += 2)
		p[n++] = (struct pollfd){ slot_fd(op->word[i]), event_bits(op->word[i + 1]), 0 };
	rc = op->word[0][1] == 'p' ? ppoll(p, n, &t, NULL) : poll(p, n, number(op->word[1]));
	say_rc(rc);
	for (int i = 0; i < n && rc > 0; i++) {
		if (!p[i].revents)
			continue;
		say(" %s:", op->word[2 + 2 * i]);
		say_events((uint16_t)p[i].revents);
	}
}

/* select MS SLOT SETS [SLOT SETS…], SETS of in, out and pri; and pselect. */
static void do_select(const struct op *op)
{
	struct timespec ts = timespec_of(op->word[1]);
	struct timeval t = { .tv_usec = number(op->word[1]) * 1000 };
	fd_set sets[3];
	int top = -1, rc;

	for (int k = 0; k < 3; k++)
		FD_ZERO(&sets[k]);
	for (int i = 2; i + 1 < op->n; i += 2) {
		int fd = slot_fd(op->word[i]);
		uint32_t bits = event_bits(op->word[i + 1]);

		if (bits & EPOLLIN)
			FD_SET(fd, &sets[0]);
		if (bits & EPOLLOUT)
			FD_SET(fd, &sets[1]);
		if (bits & EPOLLPRI)
			FD_SET(fd, &sets[2]);
		top = fd > top ? fd : top;
	}
	rc = op->word[0][0] == 'p' ? pselect(top + 1, &sets[0], &sets[1], &sets[2], &ts, NULL)
				   : select(top + 1, &sets[0], &sets[1], &sets[2], &t);
	say_rc(rc);
	for (int i = 2; i + 1 < op->n && rc > 0; i += 2) {
		int fd = slot_fd(op->word[i]);
		uint32_t bits = (FD_ISSET(fd, &sets[0]) ? EPOLLIN : 0) | (FD_ISSET(fd, &sets[1]) ? EPOLLOUT : 0) |
				(FD_ISSET(fd, &sets[2]) ? EPOLLPRI : 0);

		if (!bits)
			continue;
		say(" %s:", op->word[i]);
		say_events(bits);
	}
}

static void nap(void)
{
	struct timespec t = { .tv_nsec = 200000 };

	nanosleep(&t, NULL);
}

/*
 * await poll S EVENTS: one of them is there.
 * await bytes S N: so many can be read.
 */
static void do_await(const struct op *op)
{
	bool bytes = !strcmp(op->word[1], "bytes");
	int fd = slot_fd(op->word[2]), n = 0;
	struct pollfd p = { fd, bytes ? POLLIN : (short)event_bits(op->word[3]), 0 };
	struct timespec begin, now;

	clock_gettime(CLOCK_MONOTONIC, &begin);
	do {
		bool there = poll(&p, 1, bytes ? 0 : 20) == 1 && (p.revents & p.events);

		if (there && (!bytes || (ioctl(fd, FIONREAD, &n) == 0 && n >= number(op->word[3]))))
			return;
		if (bytes)
			nap();
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while ((now.tv_sec - begin.tv_sec) * 1000 + (now.tv_nsec - begin.tv_nsec) / 1000000 < await_limit);
	say("await %s %s %s: it did not come", op->word[1], op->word[2], op->word[3]);
	if (bytes)
		say(", %d bytes are there", n);
	say("\n");
}

const struct call ready_calls[] = {
	{ "epoll", 1, do_epoll },
	{ "ctl", 3, do_ctl },
	{ "epwait", 2, do_epwait },
	{ "poll", 1, do_poll },
	{ "ppoll", 1, do_poll },
	{ "select", 1, do_select },
	{ "pselect", 1, do_select },
	{ "await", 3, do_await },
	{ NULL, 0, NULL },
};
