/* SPDX-License-Identifier: Apache-2.0 */

/*
 * exec of a program that the shim will not be in: statically linked, for
 * another machine, or one for which the loader ignores LD_PRELOAD. Its sockets
 * are then the kernel's, whatever the policy says, and nobody would be told.
 *
 * The child of vfork comes here, too: nothing is allocated, no lock is taken,
 * nothing of the parent's is written to, and hostd is told on a connection of
 * its own, briefly. A Go program is no finding: with the client that it may
 * have it is offloaded; if it has not, hostd finds its sockets.
 */
#include "target.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "../attach.h"
#include "hostd.h"
#include "log.h"
#include "real.h"

#define HEAD        4096 /* of a file, with its program headers */
#define MAX_DEPTH   4 /* of interpreters of interpreters */
#define PATIENCE_US 200000

#if defined(__x86_64__)
#define MACHINE EM_X86_64
#elif defined(__aarch64__)
#define MACHINE EM_AARCH64
#endif

/* The loader will run in secure mode. */
static bool privileged(int fd)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return false;
	if ((st.st_mode & S_ISUID) && st.st_uid != geteuid())
		return true;
	if ((st.st_mode & S_ISGID) && st.st_gid != getegid())
		return true;
	return geteuid() != 0 && fgetxattr(fd, "security.capability", NULL, 0) > 0;
}

/* A note with which the Go linker marks what it makes. */
static bool go_note(const uint8_t *head, size_t n, const Elf64_Phdr *p)
{
	static const uint8_t name[] = { 4, 0, 0, 0 }, go[] = { 'G', 'o', 0, 0 };

	return p->p_offset + 16 <= n && p->p_filesz >= 16 &&
	       !memcmp(head + p->p_offset, name, 4) && !memcmp(head + p->p_offset + 12, go, 4);
}

static uint32_t judge_elf(const uint8_t *head, size_t n)
{
	Elf64_Ehdr e;
	bool dynamic = false;

	memcpy(&e, head, sizeof e);
	if (e.e_ident[EI_CLASS] != ELFCLASS64 || e.e_machine != MACHINE)
		return PNO_BYPASS_MACHINE;
	for (unsigned i = 0; i < e.e_phnum; i++) {
		uint64_t at = e.e_phoff + i * (uint64_t)sizeof(Elf64_Phdr);
		Elf64_Phdr p;

		if (e.e_phoff > n || at + sizeof p > n)
			return 0; /* not where linkers put them: who knows */
		memcpy(&p, head + at, sizeof p);
		dynamic |= p.p_type == PT_INTERP;
		if (p.p_type == PT_NOTE && p.p_offset < n && go_note(head, n, &p))
			return 0;
	}
	return dynamic ? 0 : PNO_BYPASS_STATIC;
}

/* The first word behind "#!", in place; NULL: there is none. */
static char *interpreter(char *head)
{
	char *at = head + 2, *end;

	at += strspn(at, " \t");
	end = at + strcspn(at, " \t\n");
	if (end == at || !*end)
		return NULL;
	*end = 0;
	return at;
}

static uint32_t judge(const char *path, unsigned depth)
{
	char head[HEAD];
	uint32_t reason = 0;
	ssize_t n;
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);

	if (fd < 0)
		return 0; /* exec will say why, or may do what we may not */
	n = pread(fd, head, sizeof head - 1, 0);
	if (n > 0 && privileged(fd))
		reason = PNO_BYPASS_PRIVILEGED;
	real.close(fd);
	if (reason || n < 4)
		return reason;
	head[n] = 0;
	if (!memcmp(head, "#!", 2)) {
		char *program = interpreter(head);

		return program && depth < MAX_DEPTH ? judge(program, depth + 1) : 0;
	}
	if (n >= (ssize_t)sizeof(Elf64_Ehdr) && !memcmp(head, ELFMAG, SELFMAG))
		return judge_elf((uint8_t *)head, n);
	return 0;
}

/* 0: hostd has not heard of this program before. */
static int tell_hostd(uint32_t reason, const char *path)
{
	struct pno_msg_bypass m = {
		.h = { PNO_ATTACH_MAGIC, PNO_ATTACH_VERSION, PNO_MSG_BYPASS, sizeof m, 1 },
		.reason = reason,
	};
	struct timeval patience = { .tv_usec = PATIENCE_US };
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	struct pno_msg_ack ack = { .err = ETIMEDOUT };
	int fd = real.socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -1;
	strcpy(sa.sun_path, pno_hostd_path());
	strncpy(m.program, path, sizeof m.program - 1);
	if (real.setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) < 0 ||
	    real.setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience) < 0 ||
	    real.connect(fd, (struct sockaddr *)&sa, sizeof sa) < 0 ||
	    real.send(fd, &m, sizeof m, MSG_NOSIGNAL) != sizeof m ||
	    real.recv(fd, &ack, sizeof ack, 0) != sizeof ack)
		ack.err = ETIMEDOUT;
	real.close(fd);
	return ack.err;
}

void pno_target_tell(const char *path)
{
	static const char *const why[] = {
		[PNO_BYPASS_STATIC] = "it is statically linked, and nothing can be preloaded into it",
		[PNO_BYPASS_PRIVILEGED] = "it has privileges of its own, with which the loader ignores LD_PRELOAD",
		[PNO_BYPASS_MACHINE] = "it is built for another machine",
	};
	int saved = errno;
	uint32_t reason = judge(path, 0);

	if (reason && tell_hostd(reason, path) == 0)
		pno_log(PNO_ERROR, "warning: %s is not offloaded: %s", path, why[reason]);
	errno = saved;
}

void pno_target_tell_search(const char *file)
{
	const char *at = getenv("PATH"), *end;
	char path[4096];

	if (strchr(file, '/')) {
		pno_target_tell(file);
		return;
	}
	for (; at && *at; at = *end ? end + 1 : end) {
		int saved = errno, n, rc;

		end = at + strcspn(at, ":");
		n = snprintf(path, sizeof path, "%.*s/%s", (int)(end - at), at, file);
		if (n < 0 || n >= (int)sizeof path)
			continue;
		rc = access(path, X_OK);
		errno = saved;
		if (rc == 0) {
			pno_target_tell(path);
			return;
		}
	}
}
