/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The moment between a session's end and a socket's: whoever ends the session
 * has said so, and has not come to this socket yet, for which it needs the lock
 * that a call on it holds. The call must not wait for that.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fake_dpu.h"
#include "sock.h"

static int server(void)
{
	struct sockaddr_in sa = { .sin_family = AF_INET, .sin_port = htons(PORT_ECHO) };
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	inet_pton(AF_INET, "198.18.0.1", &sa.sin_addr);
	CHECK(fd >= 0 && connect(fd, (struct sockaddr *)&sa, sizeof sa) == 0);
	return fd;
}

int main(void)
{
	struct pollfd p = { .events = POLLIN };
	struct pno_sock *s;
	int one, two;
	char c;

	alarm(60);
	fake_start(1, PNO_MIN_RING_SIZE * 2);
	one = server(), two = server();
	s = pno_sock_peek(one);
	CHECK(s);
	atomic_store(&s->ses->lost, true);
	pno_sock_unlock(s);
	CHECK(recv(one, &c, 1, 0) == -1 && errno == ECONNRESET);
	p.fd = one;
	CHECK(poll(&p, 1, 5000) == 1 && p.revents & POLLHUP);
	CHECK(recv(two, &c, 1, MSG_PEEK) == -1 && errno == ECONNRESET);
	close(one), close(two);
	fake_stop();
	return 0;
}
