/* SPDX-License-Identifier: Apache-2.0 */

/*
 * FILE streams over connections: fdopen, and freopen of such a stream.
 */
#include "conf.h"

static char b[64];

static bool is_open(int fd)
{
	return fcntl(fd, F_GETFD) >= 0;
}

static void lines(void)
{
	int c, s;
	FILE *f;

	pair(AF_INET, &c, &s);
	f = fdopen(s, "r+");
	need(f != NULL, "fdopen");
	write_all(c, "one\ntwo\n", 8);
	R(fileno(f) == s);
	R(fgets(b, sizeof b, f) && !strcmp(b, "one\n"));
	R(fgets(b, sizeof b, f) && !strcmp(b, "two\n"));
	R(fseek(f, 0, SEEK_SET));
	R(ftell(f));
	R(shutdown(c, SHUT_WR));
	R(fgets(b, sizeof b, f) == NULL);
	R(feof(f) != 0);
	clearerr(f);
	R(fprintf(f, "answer %d", 42));
	R(fflush(f));
	R(recv(c, b, 9, MSG_WAITALL));
	R(fclose(f));
	R(is_open(s));
	R(recv(c, b, sizeof b, 0));
	close(c);
}

/* The file takes the descriptor, and the connection ends. */
static void onto_file(void)
{
	char path[] = "/tmp/pno-conf-XXXXXX";
	int c, s, tmp = mkstemp(path);
	FILE *f;

	need(tmp >= 0, "mkstemp");
	close(tmp);
	pair(AF_INET, &c, &s);
	f = fdopen(s, "w");
	R(fprintf(f, "not yet written"));
	R(freopen(path, "w", f) == f);
	R(fileno(f) == s);
	R(recv(c, b, 15, MSG_WAITALL));
	R(recv(c, b, sizeof b, 0));
	R(fprintf(f, "to the file\n"));
	R(fseek(f, 0, SEEK_END));
	R(ftell(f));
	R(freopen(path, "r", f) == f);
	R(fgets(b, sizeof b, f) && !strcmp(b, "to the file\n"));
	R(fprintf(f, "x"));
	R(fileno(f) == s);
	R(fclose(f));
	R(is_open(s));
	unlink(path);
	close(c);
}

static void onto_nothing(void)
{
	int c, s;
	FILE *f;

	pair(AF_INET, &c, &s);
	f = fdopen(s, "r");
	R(freopen(NULL, "r", f) == NULL); /* a socket has no path */
	R(is_open(s));
	R(recv(c, b, sizeof b, 0));
	close(c);

	pair(AF_INET6, &c, &s);
	f = fdopen(s, "r");
	R(freopen("/nonexistent/file", "r", f) == NULL);
	R(is_open(s));
	R(recv(c, b, sizeof b, 0));
	close(c);

	pair(AF_INET, &c, &s);
	f = fdopen(s, "r");
	R(freopen("/dev/null", "?", f) == NULL);
	R(is_open(s));
	R(recv(c, b, sizeof b, 0));
	close(c);
}

/* As a daemon lets go of what it was started with. */
static void standard(void)
{
	int c, s, in = dup(0), err = dup(2);

	pair(AF_INET, &c, &s);
	R(dup2(s, 0));
	R(dup2(s, 2));
	close(s);
	write_all(c, "line\n", 5);
	R(fgets(b, sizeof b, stdin) && !strcmp(b, "line\n"));
	R(fprintf(stderr, "error"));
	R(recv(c, b, 5, MSG_WAITALL));
	R(freopen("/dev/null", "r", stdin) != NULL);
	R(fgets(b, sizeof b, stdin) == NULL);
	R(feof(stdin) != 0);
	R(fileno(stdin));
	R(freopen("/dev/null", "w", stderr) != NULL);
	R(fprintf(stderr, "to nobody"));
	R(fflush(stderr));
	R(fileno(stderr));
	R(recv(c, b, sizeof b, 0)); /* nobody has it any more */
	dup2(in, 0);
	dup2(err, 2);
	close(in);
	close(err);
	close(c);
}

int main(void)
{
	SECTION("lines");
	lines();
	SECTION("freopen with a file");
	onto_file();
	SECTION("freopen that fails");
	onto_nothing();
	SECTION("standard streams");
	standard();
	return 0;
}
