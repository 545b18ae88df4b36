/* SPDX-License-Identifier: Apache-2.0 */

/*
 * connect with AF_UNSPEC ends a connection and leaves a socket that can be
 * connected again.
 */
#include "conf.h"

static void dissolve(void)
{
	struct sockaddr none = { .sa_family = AF_UNSPEC };
	struct sockaddr_storage at;
	int l = listener(AF_INET, &at), c, s;
	char b[4];

	name_port(&at, "listener");
	c = dial(&at);
	s = accept(l, NULL, NULL);
	R(connect(c, &none, sizeof none));
	WHERE(getpeername, c);
	READY(c);
	AWAIT(s, POLLIN);
	R(recv(s, b, sizeof b, 0));
	close(s);
	R(connect(c, SA(at), sizeof(struct sockaddr_in)));
	s = FD(accept(l, NULL, NULL));
	R(send(c, "hi", 2, 0));
	R(recv(s, b, sizeof b, 0));
	close(c);
	close(s);

	c = socket(AF_INET, SOCK_STREAM, 0);
	R(connect(c, &none, sizeof none));
	R(connect(c, &none, sizeof(sa_family_t)));
	R(connect(c, &none, 1));
	close(c);
	close(l);
}

int main(void)
{
	SECTION("AF_UNSPEC");
	dissolve();
	return 0;
}
