/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A child behind a filter for system calls, which has it read and write and
 * little else, serves a connection.
 *
 * conf: not sanitized (the sanitizer makes calls that the filter refuses)
 */
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "conf.h"

#define ALLOW(name) \
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##name, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

static bool lock_up(bool by_number)
{
	struct sock_filter f[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		ALLOW(read), ALLOW(write), ALLOW(close), ALLOW(exit_group), ALLOW(brk), ALLOW(mmap), ALLOW(munmap),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
	};
	struct sock_fprog program = { .len = sizeof f / sizeof f[0], .filter = f };

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
		return false;
	if (by_number)
		return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) == 0;
	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

/* Answers until the end of the stream; its status says how that went. */
static int echo(int s)
{
	char buf[4096];
	ssize_t n;

	while ((n = read(s, buf, sizeof buf)) > 0)
		if (write(s, buf, n) != n)
			return 2;
	return n == 0 ? 0 : 3;
}

static void ask(int c, pid_t pid)
{
	char sent[3000], back[3000];
	int status;

	fill(sent, sizeof sent);
	for (int i = 0; i < 3; i++) {
		nap(20); /* it sleeps */
		write_all(c, sent, sizeof sent);
		read_all(c, back, sizeof back);
		show_bytes("came back", back, sizeof back);
	}
	R(shutdown(c, SHUT_WR));
	need(waitpid(pid, &status, 0) == pid, "waitpid");
	show("the child ended with %d, signal %d", WEXITSTATUS(status), WTERMSIG(status));
}

static void filtered(bool by_number)
{
	int c, s;
	pid_t pid;

	pair(AF_INET, &c, &s);
	pid = fork();
	if (pid == 0) {
		close(c);
		_exit(lock_up(by_number) ? echo(s) : 4);
	}
	R(close(s));
	ask(c, pid);
	close(c);
}

int main(void)
{
	SECTION("prctl");
	filtered(false);
	SECTION("seccomp");
	filtered(true);
	return 0;
}
