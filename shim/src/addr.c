/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Socket addresses to protocol addresses and back. On an IPv6 socket an IPv4
 * peer shows as a v4-mapped address, as the kernel shows it; on the DPU it is
 * plain IPv4.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <string.h>

#include "fault.h"
#include "sock.h"

int pno_addr_from(const struct sockaddr *sa, socklen_t len, struct pno_addr *a)
{
	memset(a, 0, sizeof *a);
	if (len < sizeof(sa_family_t))
		return EINVAL;
	if (sa->sa_family == AF_INET) {
		struct sockaddr_in in;

		if (len < sizeof in)
			return EINVAL;
		memcpy(&in, sa, sizeof in);
		a->family = 4;
		a->port = ntohs(in.sin_port);
		memcpy(a->ip, &in.sin_addr, 4);
		return 0;
	}
	if (sa->sa_family == AF_INET6) {
		struct sockaddr_in6 in6;

		if (len < offsetof(struct sockaddr_in6, sin6_scope_id))
			return EINVAL;
		memset(&in6, 0, sizeof in6);
		memcpy(&in6, sa, len < sizeof in6 ? len : sizeof in6);
		a->port = ntohs(in6.sin6_port);
		if (IN6_IS_ADDR_V4MAPPED(&in6.sin6_addr)) {
			a->family = 4;
			memcpy(a->ip, in6.sin6_addr.s6_addr + 12, 4);
			return 0;
		}
		a->family = 6;
		a->scope = in6.sin6_scope_id;
		memcpy(a->ip, &in6.sin6_addr, 16);
		return 0;
	}
	return EAFNOSUPPORT;
}

int pno_addr_to(const struct pno_addr *a, int domain, struct sockaddr *sa, socklen_t *len)
{
	union {
		struct sockaddr_in in;
		struct sockaddr_in6 in6;
	} u;
	socklen_t size, room;

	memset(&u, 0, sizeof u);
	if (domain == AF_INET6) {
		u.in6.sin6_family = AF_INET6;
		u.in6.sin6_port = htons(a->port);
		if (a->family == 4) {
			u.in6.sin6_addr.s6_addr[10] = u.in6.sin6_addr.s6_addr[11] = 0xff;
			memcpy(u.in6.sin6_addr.s6_addr + 12, a->ip, 4);
		} else {
			memcpy(&u.in6.sin6_addr, a->ip, 16);
			u.in6.sin6_scope_id = a->scope;
		}
		size = sizeof u.in6;
	} else {
		u.in.sin_family = AF_INET;
		u.in.sin_port = htons(a->port);
		memcpy(&u.in.sin_addr, a->ip, 4);
		size = sizeof u.in;
	}
	if (!pno_get32(len, &room))
		return EFAULT;
	if ((int)room < 0)
		return EINVAL;
	return pno_copy(sa, &u, room < size ? room : size) && pno_put32(len, size) ? 0 : EFAULT;
}

bool pno_addr_to_many(const struct pno_addr *a)
{
	static const uint8_t all[4] = { 255, 255, 255, 255 };

	if (a->family == 6)
		return a->ip[0] == 0xff;
	return (a->ip[0] & 0xf0) == 0xe0 || !memcmp(a->ip, all, sizeof all);
}

bool pno_addr_loopback(const struct pno_addr *a)
{
	static const uint8_t one[16] = { [15] = 1 };

	if (a->family == 4)
		return a->ip[0] == 127;
	return a->family == 6 && !memcmp(a->ip, one, sizeof one);
}
