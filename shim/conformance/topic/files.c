/* SPDX-License-Identifier: Apache-2.0 */

/*
 * sendfile from files and pipes, and splice both ways.
 */
#include "conf.h"

#include <sys/mman.h>
#include <sys/sendfile.h>

#define SIZE 300000

static char content[SIZE], got[SIZE + 1];
static void *volatile nowhere = (void *)8; /* or the compiler objects */

static int file(void)
{
	int fd = memfd_create("conformance", MFD_CLOEXEC);

	need(fd >= 0, "memfd_create");
	fill(content, SIZE);
	write_all(fd, content, SIZE);
	need(lseek(fd, 0, SEEK_SET) == 0, "lseek");
	return fd;
}

static void from_file(void)
{
	int c, s, f = file();
	off_t at = 100;

	pair(AF_INET, &c, &s);
	R(sendfile(c, f, NULL, 1000));
	R(lseek(f, 0, SEEK_CUR));
	read_all(s, got, 1000);
	show_bytes("got", got, 1000);
	R(sendfile(c, f, &at, 5000));
	show("offset %ld", (long)at);
	R(lseek(f, 0, SEEK_CUR));
	read_all(s, got, 5000);
	show_bytes("got", got, 5000);
	at = SIZE - 10;
	R(sendfile(c, f, &at, 100));
	show("offset %ld", (long)at);
	R(sendfile(c, f, &at, 100));
	at = SIZE + 1000;
	R(sendfile(c, f, &at, 100));
	R(sendfile(c, f, NULL, 0));
	at = -1;
	R(sendfile(c, f, &at, 10));
	R(sendfile(c, f, NULL, -1L));
	R(sendfile(c, -1, NULL, 10));
	R(sendfile(-1, f, NULL, 10));
	R(sendfile(c, s, NULL, 10));
	R(sendfile(f, s, NULL, 10));
	close(c);
	close(s);
	close(f);
}

/* Files that are open for the other direction only. */
static void wrong_modes(void)
{
	char path[] = "/tmp/conformance-XXXXXX";
	int c, s, both = mkstemp(path), in, out;
	off_t at = 0;

	need(both >= 0 && write(both, "0123456789", 10) == 10, "mkstemp");
	in = open(path, O_RDONLY);
	out = open(path, O_WRONLY);
	need(in >= 0 && out >= 0 && unlink(path) == 0, "open");
	pair(AF_INET, &c, &s);
	R(sendfile(c, out, NULL, 4));
	R(sendfile(c, out, &at, 4));
	R(sendfile(c, out, NULL, 0));
	R(sendfile(c, out, &at, 0));
	R(sendfile(c, in, NULL, 0));
	R(sendfile(c, in, NULL, 4));
	R(sendfile(in, c, NULL, 4));
	R(sendfile(in, c, NULL, 0));
	R(sendfile(out, c, NULL, 4));
	R(sendfile(both, c, NULL, 0));
	R(sendfile(both, c, &at, 4));
	R(sendfile(-1, c, NULL, 4));
	R(splice(c, NULL, in, NULL, 4, 0));
	R(splice(c, NULL, in, &at, 4, 0));
	R(splice(c, NULL, out, NULL, 4, 0));
	R(splice(c, NULL, both, &at, 4, 0));
	R(splice(c, &at, both, NULL, 4, 0));
	R(splice(out, NULL, c, NULL, 4, 0));
	R(splice(out, &at, c, NULL, 4, 0));
	R(splice(in, NULL, c, NULL, 4, 0));
	R(splice(in, &at, c, NULL, 4, 0));
	read_all(s, got, 4);
	show_bytes("got", got, 4);
	close(c), close(s), close(both), close(in), close(out);
}

static void from_file64(void)
{
	int c, s, f = file();
	off64_t at = 7;

	pair(AF_INET6, &c, &s);
	R(sendfile64(c, f, &at, 100));
	show("offset %ld", (long)at);
	R(recv(s, got, 100, MSG_WAITALL));
	show_bytes("got", got, 100);
	close(c);
	close(s);
	close(f);
}

static void whole_file(void)
{
	int c, s, f = file();

	pair(AF_INET, &c, &s);
	if (fork() == 0) {
		close(s);
		for (size_t sent = 0; sent < SIZE;) {
			ssize_t n = sendfile(c, f, NULL, SIZE);

			need(n > 0, "sendfile");
			sent += n;
		}
		_exit(0);
	}
	close(c);
	R(recv(s, got, SIZE + 1, MSG_WAITALL));
	show("the same: %d", !memcmp(got, content, SIZE));
	wait(NULL);
	close(s);
	close(f);
}

static void poor_sources(void)
{
	int c, s, p[2], f = file();

	pair(AF_INET, &c, &s);
	need(pipe(p) == 0, "pipe");
	write_all(p[1], "from a pipe", 11);
	R(sendfile(c, p[0], NULL, 11));
	R(recv(s, got, 11, MSG_DONTWAIT));
	R(sendfile(c, p[1], NULL, 11));
	int dir = open("/", O_RDONLY | O_DIRECTORY);
	R(sendfile(c, dir, NULL, 10));
	close(dir);
	catch_signals(SIGPIPE);
	R(shutdown(c, SHUT_WR));
	R(sendfile(c, f, NULL, 10));
	show_signal();
	R(lseek(f, 0, SEEK_CUR));
	close(c);
	c = socket(AF_INET, SOCK_STREAM, 0);
	R(sendfile(c, f, NULL, 10));
	show_signal();
	close(c);
	close(s);
	close(f);
	close(p[0]);
	close(p[1]);
}

static void splices(void)
{
	int c, s, p[2];
	off64_t at = 0;

	pair(AF_INET, &c, &s);
	need(pipe(p) == 0, "pipe");
	/* socket, pipe, socket: what HAProxy does */
	R(send(c, "spliced through", 15, 0));
	await_bytes(s, 15);
	R(splice(s, NULL, p[1], NULL, 7, 0));
	R(splice(s, NULL, p[1], NULL, 100, SPLICE_F_NONBLOCK | SPLICE_F_MOVE));
	R(splice(p[0], NULL, s, NULL, 100, SPLICE_F_MORE));
	R(recv(c, got, 15, MSG_WAITALL));
	show_bytes("got", got, 15);
	R(splice(p[0], NULL, s, NULL, 100, SPLICE_F_NONBLOCK));
	R(splice(s, NULL, p[1], NULL, 0, 0));
	/* The flag is the pipe's; the socket has its own. */
	setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){ 0, 100000 }, sizeof(struct timeval));
	TIMED(90, 5000, splice(s, NULL, p[1], NULL, 100, SPLICE_F_NONBLOCK));
	setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){ 10, 0 }, sizeof(struct timeval));
	R(fcntl(s, F_SETFL, O_NONBLOCK));
	TIMED(0, 5000, splice(s, NULL, p[1], NULL, 100, 0));
	R(splice(s, nowhere, p[1], NULL, 10, 0));
	R(splice(s, nowhere, p[0], NULL, 10, 0));
	R(splice(s, NULL, p[1], nowhere, 10, 0));
	R(splice(p[1], NULL, s, nowhere, 10, 0));
	R(splice(s, &at, p[0], NULL, 10, 0));
	R(splice(s, &at, p[1], NULL, 10, 0));
	R(splice(p[0], NULL, s, &at, 10, 0));
	R(splice(s, NULL, c, NULL, 10, 0));
	R(splice(s, NULL, p[0], NULL, 10, 0));
	R(splice(p[1], NULL, s, NULL, 10, SPLICE_F_NONBLOCK));
	R(splice(s, NULL, p[1], NULL, 10, 0x100));
	R(splice(-1, NULL, p[1], NULL, 10, 0));
	R(splice(s, NULL, -1, NULL, 10, 0));
	R(fcntl(s, F_SETFL, 0));
	R(send(c, "end", 3, 0));
	R(shutdown(c, SHUT_WR));
	await_events(s, POLLRDHUP);
	R(splice(s, NULL, p[1], NULL, 100, 0));
	R(splice(s, NULL, p[1], NULL, 100, 0));
	close(p[1]);
	R(splice(p[0], NULL, s, NULL, 100, 0));
	R(splice(p[0], NULL, s, NULL, 100, 0));
	close(p[0]);
	close(c);
	close(s);
}

static void splice_much(void)
{
	int c, s, p[2], f = file();
	size_t done = 0;

	pair(AF_INET, &c, &s);
	need(pipe(p) == 0, "pipe");
	if (fork() == 0) {
		close(s);
		close(p[0]);
		for (loff_t at = 0; at < SIZE;)
			need(splice(f, &at, p[1], NULL, SIZE, 0) > 0, "splice");
		_exit(0);
	}
	if (fork() == 0) {
		close(c);
		close(p[0]);
		close(p[1]);
		read_all(s, got, SIZE);
		_exit(!!memcmp(got, content, SIZE));
	}
	close(p[1]);
	for (;;) {
		ssize_t n = splice(p[0], NULL, c, NULL, 65536, SPLICE_F_MOVE);

		need(n >= 0, "splice");
		if (!n)
			break;
		done += n;
	}
	show("%zu bytes", done);
	for (int i = 0; i < 2; i++) {
		int status = -1;

		wait(&status);
		show("status %d", status);
	}
	R(close(s));
	close(c);
	close(p[0]);
	close(f);
}

int main(void)
{
	SECTION("sendfile");
	from_file();
	SECTION("wrong modes");
	wrong_modes();
	SECTION("sendfile64");
	from_file64();
	SECTION("a whole file");
	whole_file();
	SECTION("poor sources");
	poor_sources();
	SECTION("splice");
	splices();
	SECTION("splice a lot");
	splice_much();
	return 0;
}
