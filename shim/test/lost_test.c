/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The moment between a session's end and a socket's: whoever ends the session
 * has said so, and has not come to this socket yet, for which it needs the lock
 * that a call on it holds. The call must not wait for that.
 */
#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fake_dpu.h"
#include "sock.h"

int main(void)
{
	struct pollfd p = { .events = POLLIN };
	struct pno_sock *s;
	int one, two;
	char c;

	alarm(60);
	fake_start(1, PNO_MIN_RING_SIZE * 2);
	one = fake_connect(PORT_ECHO), two = fake_connect(PORT_ECHO);
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
