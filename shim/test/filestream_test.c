/* SPDX-License-Identifier: Apache-2.0 */

/*
 * stdio over offloaded sockets: streams of fdopen(), and the standard ones of a
 * process whose descriptors 0 and 1 are a connection.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fake_dpu.h"

static int dial(uint16_t port)
{
	struct sockaddr_in sa = { .sin_family = AF_INET, .sin_port = htons(port) };
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	inet_pton(AF_INET, "198.18.0.1", &sa.sin_addr);
	CHECK(fd >= 0 && connect(fd, (struct sockaddr *)&sa, sizeof sa) == 0);
	return fd;
}

static void streams(void)
{
	int fd = dial(PORT_ECHO), twin = dup(fd);
	FILE *in = fdopen(fd, "r"), *out = fdopen(twin, "w");
	char line[64];

	CHECK(in && out && fileno(in) == fd && fileno(out) == twin);
	CHECK(fprintf(out, "one\ntwo %d\n", 2) == 10 && fflush(out) == 0);
	CHECK(fgets(line, sizeof line, in) && !strcmp(line, "one\n"));
	CHECK(fgets(line, sizeof line, in) && !strcmp(line, "two 2\n"));
	CHECK(dprintf(fd, "three %s\n", "3") == 8);
	CHECK(fgets(line, sizeof line, in) && !strcmp(line, "three 3\n"));
	CHECK(shutdown(fd, SHUT_WR) == 0);
	CHECK(!fgets(line, sizeof line, in) && feof(in));
	CHECK(fclose(in) == 0 && close(fd) == -1 && errno == EBADF);
	CHECK(fclose(out) == 0);
	CHECK(!fdopen(dial(PORT_ECHO), "nonsense") && errno == EINVAL);
}

/* What stdout held when its descriptor became a connection goes there. */
static void standard(void)
{
	int fd = dial(PORT_ECHO), in = dup(0), out = dup(1);
	FILE *libcs = stdout;
	char line[64];

	fflush(stdout);
	setvbuf(stdout, NULL, _IOFBF, BUFSIZ);
	printf("held ");
	CHECK(dup2(fd, 0) == 0 && dup2(fd, 1) == 1);
	CHECK(fileno(stdin) == 0 && fileno(stdout) == 1);
	printf("and said\n");
	fflush(stdout);
	CHECK(fgets(line, sizeof line, stdin) && !strcmp(line, "held and said\n"));
	CHECK(dup2(in, 0) == 0 && dup2(out, 1) == 1);
	CHECK(stdout == libcs);
	close(fd);
	close(in);
	close(out);
}

int main(void)
{
	alarm(240);
	fake_start(1, PNO_MIN_RING_SIZE * 2);
	streams();
	standard();
	fake_stop();
	printf("ok filestream\n");
	return 0;
}
