/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Entry points: giving up rights. A worker of a proxy forks, locks itself into
 * an empty directory, becomes another user, and only then touches the sockets
 * that it inherited: hostd's socket would be out of its sight, or not for it.
 * So a process that holds offloaded sockets attaches right before.
 */
#include <grp.h>
#include <unistd.h>

#include "real.h"
#include "session.h"
#include "sock.h"

static void find_offloaded(struct pno_sock *s, void *arg)
{
	*(bool *)arg |= pno_sock_offloaded(s);
}

static void attach_first(void)
{
	bool any = false;

	PNO_ENTER();
	if (pno_session_now())
		return;
	pno_sock_each(find_offloaded, &any);
	if (any)
		pno_session_get();
}

PNO_EXPORT int chroot(const char *path)
{
	/* Whatever it opens later, it could not attach then. */
	PNO_ENTER();
	pno_session_get();
	return real.chroot(path);
}

PNO_EXPORT int setuid(uid_t uid)
{
	attach_first();
	return real.setuid(uid);
}

PNO_EXPORT int setreuid(uid_t ruid, uid_t euid)
{
	attach_first();
	return real.setreuid(ruid, euid);
}

PNO_EXPORT int setresuid(uid_t ruid, uid_t euid, uid_t suid)
{
	attach_first();
	return real.setresuid(ruid, euid, suid);
}

PNO_EXPORT int setgid(gid_t gid)
{
	attach_first();
	return real.setgid(gid);
}

PNO_EXPORT int setregid(gid_t rgid, gid_t egid)
{
	attach_first();
	return real.setregid(rgid, egid);
}

PNO_EXPORT int setresgid(gid_t rgid, gid_t egid, gid_t sgid)
{
	attach_first();
	return real.setresgid(rgid, egid, sgid);
}

PNO_EXPORT int setgroups(size_t n, const gid_t *groups)
{
	attach_first();
	return real.setgroups(n, groups);
}

PNO_EXPORT int initgroups(const char *user, gid_t group)
{
	attach_first();
	return real.initgroups(user, group);
}
