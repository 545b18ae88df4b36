/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Urgent data.
 */
#include "conf.h"

static void urgent(void)
{
	int c, s, n = -1;
	char b[8];

	pair(AF_INET, &c, &s);
	R(recv(s, b, 1, MSG_OOB));
	R(ioctl(s, SIOCATMARK, &n));
	show("%d", n);
	R(sockatmark(s));
	R(send(c, "ab!", 3, MSG_OOB));
	R(send(c, "more", 4, 0));
	AWAIT(s, POLLIN);
	R(recv(s, b, 1, MSG_OOB | MSG_DONTWAIT));
	close(c);
	close(s);
}

int main(void)
{
	SECTION("urgent data");
	urgent();
	return 0;
}
