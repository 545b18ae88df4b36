/* SPDX-License-Identifier: Apache-2.0 */

/*
 * From socket to socket through a pipe, as a proxy does that looks at nothing.
 * conf: spliced, conf: threads. After a few rounds such bytes stay on the DPU, where every
 * other use of the pipe and of the sockets has to find them.
 */
#include "conf.h"

#include <pthread.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/select.h>

#define BIG 3000000
#define ALL (SPLICE_F_MOVE | SPLICE_F_NONBLOCK)

static char content[BIG], got[BIG];

/* source sends to in; what goes to out arrives at sink. */
struct relay {
	int source, in, pipe[2], out, sink;
};

static void nonblocking(int fd)
{
	need(fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) == 0, "fcntl");
}

/* Moves n bytes in all from one end of a splice to the other. */
static void move(int from, int to, size_t n)
{
	while (n > 0) {
		ssize_t k = splice(from, NULL, to, NULL, n, ALL);

		if (k < 0 && errno == EAGAIN) {
			nap(1);
			continue;
		}
		need(k > 0, "splice");
		n -= k;
	}
}

static void send_through(struct relay *r, size_t n)
{
	write_all(r->source, content, n);
	move(r->in, r->pipe[1], n);
	move(r->pipe[0], r->out, n);
	read_all(r->sink, got, n);
	need(!memcmp(got, content, n), "bytes as they were sent");
}

static void set_up(struct relay *r)
{
	pair(AF_INET, &r->source, &r->in);
	pair(AF_INET, &r->sink, &r->out);
	nonblocking(r->in);
	nonblocking(r->out);
	need(pipe(r->pipe) == 0, "pipe");
	for (int i = 0; i < 5; i++)
		send_through(r, 1000);
}

static void tear_down(struct relay *r)
{
	close(r->source);
	close(r->in);
	close(r->out);
	close(r->sink);
	close(r->pipe[0]);
	close(r->pipe[1]);
}

/* Sends text, and leaves it in the pipe. */
static void leave(struct relay *r, const char *text)
{
	write_all(r->source, text, strlen(text));
	move(r->in, r->pipe[1], strlen(text));
}

static void simple(void)
{
	struct relay r;

	set_up(&r);
	R(splice(r.in, NULL, r.pipe[1], NULL, 100, ALL));
	R(splice(r.pipe[0], NULL, r.out, NULL, 100, ALL));
	R(send(r.source, "to be moved", 11, 0));
	AWAIT(r.in, POLLIN);
	R(splice(r.in, NULL, r.pipe[1], NULL, 100, ALL));
	R(splice(r.in, NULL, r.pipe[1], NULL, 100, ALL));
	R(splice(r.pipe[0], NULL, r.out, NULL, 5, ALL));
	R(splice(r.pipe[0], NULL, r.out, NULL, 100, ALL));
	R(splice(r.pipe[0], NULL, r.out, NULL, 100, ALL));
	R(recv(r.sink, got, 11, MSG_WAITALL));
	show_bytes("got", got, 11);
	READY(r.in);
	READY(r.out);
	tear_down(&r);
}

static void in_the_pipe(void)
{
	struct relay r;
	int n = 0, other[2], copy;
	fd_set set;
	struct timeval none = { 0, 0 };

	set_up(&r);
	leave(&r, "read");
	R(read(r.pipe[0], got, 100));
	show_bytes("got", got, 4);
	send_through(&r, 5000);
	tear_down(&r);

	set_up(&r);
	leave(&r, "counted");
	R(ioctl(r.pipe[0], FIONREAD, &n));
	show("%d bytes", n);
	R(read(r.pipe[0], got, 100));
	show_bytes("got", got, 7);
	tear_down(&r);

	set_up(&r);
	leave(&r, "polled");
	READY(r.pipe[0]);
	move(r.pipe[0], r.out, 6);
	READY(r.pipe[0]);
	R(recv(r.sink, got, 6, MSG_WAITALL));
	show_bytes("got", got, 6);
	tear_down(&r);

	set_up(&r);
	leave(&r, "selected");
	FD_ZERO(&set);
	FD_SET(r.pipe[0], &set);
	R(select(r.pipe[0] + 1, &set, NULL, NULL, &none));
	tear_down(&r);

	set_up(&r);
	leave(&r, "copied");
	copy = dup(r.pipe[0]);
	R(read(copy, got, 100));
	show_bytes("got", got, 6);
	close(copy);
	tear_down(&r);

	set_up(&r);
	leave(&r, "teed");
	need(pipe(other) == 0, "pipe");
	R(tee(r.pipe[0], other[1], 100, SPLICE_F_NONBLOCK));
	R(read(other[0], got, 100));
	show_bytes("got", got, 4);
	move(r.pipe[0], r.out, 4);
	R(recv(r.sink, got, 4, MSG_WAITALL));
	show_bytes("got", got, 4);
	close(other[0]);
	close(other[1]);
	tear_down(&r);

	set_up(&r);
	leave(&r, "before ");
	R(write(r.pipe[1], "after", 5));
	move(r.pipe[0], r.out, 12);
	R(recv(r.sink, got, 12, MSG_WAITALL));
	show_bytes("got", got, 12);
	tear_down(&r);

	set_up(&r);
	leave(&r, "of a closed end");
	R(close(r.pipe[1]));
	R(read(r.pipe[0], got, 100));
	show_bytes("got", got, 15);
	R(read(r.pipe[0], got, 100));
	r.pipe[1] = -1;
	tear_down(&r);

	set_up(&r);
	leave(&r, "thrown away");
	R(close(r.pipe[0]));
	R(close(r.pipe[1]));
	need(pipe(r.pipe) == 0, "pipe");
	send_through(&r, 1000);
	tear_down(&r);
}

static void elsewhere(void)
{
	struct relay r, other;
	int file, p[2], ep;
	struct epoll_event e = { .events = EPOLLIN };

	set_up(&r);
	leave(&r, "to a file");
	file = memfd_create("conformance", MFD_CLOEXEC);
	R(splice(r.pipe[0], NULL, file, NULL, 100, 0));
	R(pread(file, got, 100, 0));
	show_bytes("got", got, 9);
	close(file);
	tear_down(&r);

	set_up(&r);
	leave(&r, "to a pipe");
	need(pipe(p) == 0, "pipe");
	R(splice(r.pipe[0], NULL, p[1], NULL, 100, 0));
	R(read(p[0], got, 100));
	show_bytes("got", got, 9);
	close(p[0]);
	close(p[1]);
	tear_down(&r);

	set_up(&r);
	set_up(&other);
	leave(&r, "one ");
	write_all(other.source, "another", 7);
	await_events(other.in, POLLIN);
	move(other.in, r.pipe[1], 7);
	move(r.pipe[0], other.out, 11);
	R(recv(other.sink, got, 11, MSG_WAITALL));
	show_bytes("got", got, 11);
	send_through(&r, 3000);
	send_through(&other, 3000);
	tear_down(&r);

	leave(&other, "echo");
	move(other.pipe[0], other.in, 4);
	R(recv(other.source, got, 4, MSG_WAITALL));
	show_bytes("got", got, 4);
	tear_down(&other);

	set_up(&r);
	leave(&r, "two ");
	need(pipe(p) == 0, "pipe");
	write_all(r.source, "pipes", 5);
	await_events(r.in, POLLIN);
	move(r.in, p[1], 5);
	move(r.pipe[0], r.out, 4);
	move(p[0], r.out, 5);
	R(recv(r.sink, got, 9, MSG_WAITALL));
	show_bytes("got", got, 9);
	close(p[0]);
	close(p[1]);
	tear_down(&r);

	set_up(&r);
	ep = epoll_create1(0);
	R(epoll_ctl(ep, EPOLL_CTL_ADD, r.pipe[0], &e));
	leave(&r, "noticed");
	R(epoll_wait(ep, &e, 1, 5000));
	close(ep);
	tear_down(&r);
}

static void of_the_socket(void)
{
	struct relay r;
	int n = 0;

	set_up(&r);
	R(send(r.source, "head, body", 10, 0));
	await_bytes(r.in, 10);
	R(splice(r.in, NULL, r.pipe[1], NULL, 4, ALL));
	R(ioctl(r.in, FIONREAD, &n));
	show("%d bytes", n);
	R(recv(r.in, got, 2, MSG_PEEK));
	show_bytes("got", got, 2);
	R(recv(r.in, got, 100, 0));
	show_bytes("got", got, 6);
	R(recv(r.in, got, 100, 0));
	READY(r.in);
	move(r.pipe[0], r.out, 4);
	R(recv(r.sink, got, 4, MSG_WAITALL));
	show_bytes("got", got, 4);
	/* It goes on, by whichever way. */
	for (int i = 0; i < 200; i++)
		send_through(&r, 700 + i);
	R(recv(r.in, got, 100, 0));
	R(send(r.source, "x", 1, 0));
	AWAIT(r.in, POLLIN);
	R(recv(r.in, got, 100, 0));
	tear_down(&r);

	set_up(&r);
	need(fcntl(r.in, F_SETFL, 0) == 0, "fcntl");
	R(send(r.source, "blocking", 8, 0));
	R(recv(r.in, got, 8, MSG_WAITALL));
	show_bytes("got", got, 8);
	send_through(&r, 1000);
	tear_down(&r);

	set_up(&r);
	R(send(r.source, "blocking", 8, 0));
	AWAIT(r.in, POLLIN);
	R(splice(r.in, NULL, r.pipe[1], NULL, 100, 0));
	R(splice(r.pipe[0], NULL, r.out, NULL, 100, 0));
	R(recv(r.sink, got, 8, MSG_WAITALL));
	tear_down(&r);
}

static void ends(void)
{
	struct relay r;

	set_up(&r);
	leave(&r, "last ");
	R(send(r.source, "words", 5, 0));
	R(shutdown(r.source, SHUT_WR));
	AWAIT(r.in, POLLRDHUP);
	R(splice(r.in, NULL, r.pipe[1], NULL, 100, ALL));
	R(splice(r.in, NULL, r.pipe[1], NULL, 100, ALL));
	READY(r.in);
	R(close(r.in));
	move(r.pipe[0], r.out, 10);
	R(shutdown(r.out, SHUT_WR));
	R(recv(r.sink, got, 100, MSG_WAITALL));
	show_bytes("got", got, 10);
	r.in = -1;
	tear_down(&r);

	set_up(&r);
	leave(&r, "reset later");
	setsockopt(r.source, SOL_SOCKET, SO_LINGER, &(struct linger){ 1, 0 }, sizeof(struct linger));
	R(close(r.source));
	AWAIT(r.in, POLLERR);
	R(splice(r.in, NULL, r.pipe[1], NULL, 100, ALL));
	move(r.pipe[0], r.out, 11);
	R(recv(r.sink, got, 11, MSG_WAITALL));
	show_bytes("got", got, 11);
	R(splice(r.in, NULL, r.pipe[1], NULL, 100, ALL));
	r.source = -1;
	tear_down(&r);

	set_up(&r);
	leave(&r, "read after a reset");
	setsockopt(r.source, SOL_SOCKET, SO_LINGER, &(struct linger){ 1, 0 }, sizeof(struct linger));
	R(close(r.source));
	AWAIT(r.in, POLLERR);
	R(read(r.pipe[0], got, 100));
	show_bytes("got", got, 18);
	R(recv(r.in, got, 100, 0));
	R(recv(r.in, got, 100, 0));
	r.source = -1;
	tear_down(&r);

	set_up(&r);
	leave(&r, "nobody to take it");
	setsockopt(r.sink, SOL_SOCKET, SO_LINGER, &(struct linger){ 1, 0 }, sizeof(struct linger));
	R(close(r.sink));
	AWAIT(r.out, POLLERR);
	R(splice(r.pipe[0], NULL, r.out, NULL, 100, ALL));
	R(splice(r.pipe[0], NULL, r.out, NULL, 100, ALL));
	show_signal();
	R(read(r.pipe[0], got, 100));
	show_bytes("got", got, 17);
	r.sink = -1;
	tear_down(&r);

	set_up(&r);
	leave(&r, "shut");
	R(shutdown(r.out, SHUT_WR));
	R(splice(r.pipe[0], NULL, r.out, NULL, 100, ALL));
	show_signal();
	R(shutdown(r.in, SHUT_RDWR));
	R(read(r.pipe[0], got, 100));
	show_bytes("got", got, 4);
	tear_down(&r);

	set_up(&r);
	R(send(r.source, "unread", 6, 0));
	AWAIT(r.in, POLLIN);
	R(close(r.in));
	AWAIT(r.source, POLLERR);
	R(recv(r.source, got, 100, 0));
	r.in = -1;
	tear_down(&r);
}

static void children(void)
{
	struct relay r;
	int status = -1;

	set_up(&r);
	leave(&r, "inherited");
	if (fork() == 0) {
		need(read(r.pipe[0], got, 100) == 9 && !memcmp(got, "inherited", 9), "what is in the pipe");
		_exit(0);
	}
	wait(&status);
	show("status %d", status);
	send_through(&r, 20000);

	R(send(r.source, "child's", 7, 0));
	await_events(r.in, POLLIN);
	if (fork() == 0) {
		need(recv(r.in, got, 100, 0) == 7 && !memcmp(got, "child's", 7), "what was on hold");
		_exit(0);
	}
	wait(&status);
	show("status %d", status);
	send_through(&r, 20000);
	tear_down(&r);
}

/* One that reads nothing stops the relay, and gets everything in the end. */
static void much(void)
{
	struct relay r;
	size_t sent = 0, in = 0, out = 0, read_ = 0;
	bool full = false;

	set_up(&r);
	nonblocking(r.source);
	nonblocking(r.sink);
	while (read_ < BIG) {
		ssize_t n = 0;

		if (sent < BIG && (n = send(r.source, content + sent, BIG - sent, 0)) > 0)
			sent += n;
		n = splice(r.in, NULL, r.pipe[1], NULL, BIG, ALL);
		need(n > 0 || errno == EAGAIN, "splice");
		in += n > 0 ? n : 0;
		n = splice(r.pipe[0], NULL, r.out, NULL, 70000, ALL);
		need(n > 0 || errno == EAGAIN, "splice");
		out += n > 0 ? n : 0;
		need(out <= in && in <= sent, "no more than there is");
		if (n < 0 && !full && sent > 200000 && in > out) {
			full = true; /* the sink has taken what it can */
			nap(20);
		} else if (n < 0 && full && (n = recv(r.sink, got + read_, BIG - read_, 0)) > 0) {
			read_ += n;
		} else if (n < 0) {
			nap(1);
			full |= sent == BIG && in == out;
		}
	}
	R(memcmp(got, content, BIG));
	R(splice(r.in, NULL, r.pipe[1], NULL, 100, ALL));
	R(splice(r.pipe[0], NULL, r.out, NULL, 100, ALL));
	tear_down(&r);
}

/* More than a window, in the pipe and behind it. */
#define DEEP 600000

static void *send_deep(void *arg)
{
	write_all(((struct relay *)arg)->source, content, DEEP + 300000);
	return NULL;
}

static void deep(bool reset)
{
	pthread_t sender;
	struct relay r;

	set_up(&r);
	need(fcntl(r.pipe[1], F_SETPIPE_SZ, 1 << 20) == 1 << 20, "F_SETPIPE_SZ");
	need(!pthread_create(&sender, NULL, send_deep, &r), "pthread_create");
	move(r.in, r.pipe[1], DEEP);
	await_bytes(r.in, 200000);
	if (reset) {
		pthread_join(sender, NULL);
		await_bytes(r.in, 300000);
		setsockopt(r.source, SOL_SOCKET, SO_LINGER, &(struct linger){ 1, 0 }, sizeof(struct linger));
		R(close(r.source));
		r.source = -1;
		AWAIT(r.in, POLLERR);
	}
	need(fcntl(r.in, F_SETFL, 0) == 0, "fcntl");
	read_all(r.pipe[0], got, DEEP);
	R(memcmp(got, content, DEEP));
	read_all(r.in, got, 300000);
	R(memcmp(got, content + DEEP, 300000));
	if (!reset) {
		pthread_join(sender, NULL);
		nonblocking(r.in);
		send_through(&r, 5000);
	}
	tear_down(&r);
}

/* Both directions of a connection at once, each by a thread with its own pipe. */
struct direction {
	int from, to;
	pthread_t thread;
};

static void *one_way(void *arg)
{
	struct direction *d = arg;
	size_t done = 0;
	int p[2];

	need(pipe(p) == 0, "pipe");
	while (done < BIG) {
		ssize_t n = splice(d->from, NULL, p[1], NULL, BIG, ALL);

		if (n < 0) {
			need(errno == EAGAIN, "splice");
			nap(1);
			continue;
		}
		need(n > 0, "splice before the end");
		move(p[0], d->to, n);
		done += n;
	}
	close(p[0]);
	close(p[1]);
	return NULL;
}

struct talker {
	int fd;
	bool same;
	pthread_t thread, writer;
};

static void *write_it(void *arg)
{
	write_all(*(int *)arg, content, BIG);
	return NULL;
}

static void *talk(void *arg)
{
	struct talker *t = arg;
	char *mine = malloc(BIG);

	need(mine != NULL, "malloc");
	read_all(t->fd, mine, BIG);
	t->same = !memcmp(mine, content, BIG);
	free(mine);
	return NULL;
}

static void both_ways(void)
{
	struct talker t[2] = { { .fd = -1 }, { .fd = -1 } };
	struct direction d[2];
	int in, out;

	pair(AF_INET, &t[0].fd, &in);
	pair(AF_INET, &t[1].fd, &out);
	nonblocking(in);
	nonblocking(out);
	d[0] = (struct direction){ .from = in, .to = out };
	d[1] = (struct direction){ .from = out, .to = in };
	for (int i = 0; i < 2; i++) {
		need(!pthread_create(&d[i].thread, NULL, one_way, &d[i]), "pthread_create");
		need(!pthread_create(&t[i].thread, NULL, talk, &t[i]), "pthread_create");
		need(!pthread_create(&t[i].writer, NULL, write_it, &t[i].fd), "pthread_create");
	}
	for (int i = 0; i < 2; i++) {
		pthread_join(d[i].thread, NULL);
		pthread_join(t[i].thread, NULL);
		pthread_join(t[i].writer, NULL);
		R(t[i].same);
	}
	close(in);
	close(out);
	close(t[0].fd);
	close(t[1].fd);
}

/* One thread fills the pipe, another empties it. */
static void *drain_it(void *arg)
{
	struct relay *r = arg;

	move(r->pipe[0], r->out, BIG);
	return NULL;
}

static void *fill_it(void *arg)
{
	struct relay *r = arg;

	move(r->in, r->pipe[1], BIG);
	return NULL;
}

static void two_hands(void)
{
	struct talker t = { .fd = -1 };
	pthread_t filler, drainer;
	struct relay r;

	set_up(&r);
	t.fd = r.sink;
	need(!pthread_create(&filler, NULL, fill_it, &r), "pthread_create");
	need(!pthread_create(&drainer, NULL, drain_it, &r), "pthread_create");
	need(!pthread_create(&t.thread, NULL, talk, &t), "pthread_create");
	write_all(r.source, content, BIG);
	pthread_join(filler, NULL);
	pthread_join(drainer, NULL);
	pthread_join(t.thread, NULL);
	R(t.same);
	tear_down(&r);
}

int main(void)
{
	catch_signals(SIGPIPE);
	fill(content, BIG);
	SECTION("simple");
	simple();
	SECTION("what is in the pipe");
	in_the_pipe();
	SECTION("what goes elsewhere");
	elsewhere();
	SECTION("what the socket is asked");
	of_the_socket();
	SECTION("ends");
	ends();
	SECTION("children");
	children();
	SECTION("much");
	much();
	SECTION("more than a window");
	deep(false);
	SECTION("more than a window, and a reset");
	deep(true);
	SECTION("both ways at once");
	both_ways();
	SECTION("one fills, one empties");
	two_hands();
	return 0;
}
