/* SPDX-License-Identifier: Apache-2.0 */

/*
 * exec with a cleaned environment. nginx starts its successor (binary upgrade)
 * with hardly any variables: without LD_PRELOAD the new image would find only
 * placeholders where its listeners should be. So a process that holds
 * offloaded sockets passes on what loaded the shim into it, unless the program
 * names these variables itself.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "pass.h"
#include "real.h"
#include "sock.h"
#include "target.h"

static const char *const names[] = { "LD_PRELOAD", "PNO_HOSTD", "PNO_POLICY_FILE", "PNO_LOG" };
#define NAMES (sizeof names / sizeof names[0])

static char *saved[NAMES]; /* NAME=value as at load */

void pno_exec_start(void)
{
	for (size_t i = 0; i < NAMES; i++) {
		const char *v = getenv(names[i]);
		size_t n = strlen(names[i]);

		if (!v || !(saved[i] = malloc(n + strlen(v) + 2)))
			continue;
		memcpy(saved[i], names[i], n);
		saved[i][n] = '=';
		strcpy(saved[i] + n + 1, v);
	}
}

static bool has(char *const *env, const char *name)
{
	size_t n = strlen(name);

	for (; env && *env; env++)
		if (!strncmp(*env, name, n) && (*env)[n] == '=')
			return true;
	return false;
}

static void count_one(struct pno_sock *s, void *arg)
{
	*(unsigned *)arg += pno_sock_offloaded(s);
}

/* What stays open can be found by the new image. False: nothing is offloaded. */
static bool hand_over(void)
{
	unsigned offloaded = 0;

	pno_sock_each(count_one, &offloaded);
	if (offloaded)
		pno_pass_exec();
	return offloaded;
}

/* Hands over, and gives env with what is missing, or env itself. */
static char **complete(char *const *env)
{
	unsigned missing = 0, n = 0;
	char **full;

	if (!hand_over())
		return (char **)env;
	for (size_t i = 0; i < NAMES; i++)
		missing += saved[i] && !has(env, names[i]);
	while (env && env[n])
		n++;
	full = missing ? malloc((n + missing + 1) * sizeof *full) : NULL;
	if (!full)
		return (char **)env;
	if (n)
		memcpy(full, env, n * sizeof *full);
	for (size_t i = 0; i < NAMES; i++)
		if (saved[i] && !has(env, names[i]))
			full[n++] = saved[i];
	full[n] = NULL;
	return full;
}

static int after(char **full, char *const *env)
{
	int err = errno;

	if (full != env)
		free(full);
	errno = err;
	return -1;
}

PNO_EXPORT int execve(const char *path, char *const argv[], char *const env[])
{
	char **full;

	PNO_ENTER();
	full = complete(env);
	if (has(full, "LD_PRELOAD"))
		pno_target_tell(path);
	real.execve(path, argv, full);
	return after(full, env);
}

PNO_EXPORT int execvpe(const char *file, char *const argv[], char *const env[])
{
	char **full;

	PNO_ENTER();
	full = complete(env);
	if (has(full, "LD_PRELOAD"))
		pno_target_tell_search(file);
	real.execvpe(file, argv, full);
	return after(full, env);
}

PNO_EXPORT int execv(const char *path, char *const argv[])
{
	return execve(path, argv, environ);
}

PNO_EXPORT int execvp(const char *file, char *const argv[])
{
	return execvpe(file, argv, environ);
}

/* The program that path means from dir on, by a name for the log. */
static void tell_at(int dir, const char *path)
{
	char link[32], at[PATH_MAX];
	int saved = errno;
	ssize_t n;
	size_t len = strlen(path);

	if (*path == '/' || dir == AT_FDCWD) {
		pno_target_tell(path);
		return;
	}
	snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
	n = readlink(link, at, sizeof at);
	errno = saved;
	if (n < 0 || n + len + 2 > sizeof at)
		return;
	at[n] = 0;
	if (len) {
		at[n] = '/';
		memcpy(at + n + 1, path, len + 1);
	}
	pno_target_tell(at);
}

PNO_EXPORT int execveat(int dir, const char *path, char *const argv[], char *const env[], int flags)
{
	char **full;

	PNO_ENTER();
	full = complete(env);
	if (has(full, "LD_PRELOAD"))
		tell_at(dir, path);
	real.syscall(SYS_execveat, dir, path, argv, full, flags);
	return after(full, env);
}

PNO_EXPORT int fexecve(int fd, char *const argv[], char *const env[])
{
	char **full;

	PNO_ENTER();
	full = complete(env);
	if (has(full, "LD_PRELOAD"))
		tell_at(fd, "");
	real.fexecve(fd, argv, full);
	return after(full, env);
}

/* The arguments of execl and its kin, the NULL among them, in argv. Nothing is
 * allocated: who calls them may be a signal handler. */
static size_t count_args(const char *arg, va_list args)
{
	size_t n = 1;

	for (; arg; n++)
		arg = va_arg(args, const char *);
	return n;
}

static void take_args(char **argv, const char *arg, va_list *args)
{
	for (*argv = (char *)arg; *argv; *++argv = va_arg(*args, char *))
		;
}

#define COUNT_ARGS(arg)                           \
	({                                        \
		va_list args_;                    \
		size_t n_;                        \
		va_start(args_, arg);             \
		n_ = count_args(arg, args_);      \
		va_end(args_);                    \
		n_;                               \
	})

PNO_EXPORT int execl(const char *path, const char *arg, ...)
{
	char *argv[COUNT_ARGS(arg)];
	va_list args;

	va_start(args, arg);
	take_args(argv, arg, &args);
	va_end(args);
	return execve(path, argv, environ);
}

PNO_EXPORT int execlp(const char *file, const char *arg, ...)
{
	char *argv[COUNT_ARGS(arg)];
	va_list args;

	va_start(args, arg);
	take_args(argv, arg, &args);
	va_end(args);
	return execvpe(file, argv, environ);
}

PNO_EXPORT int execle(const char *path, const char *arg, ...)
{
	char *argv[COUNT_ARGS(arg)], *const *env;
	va_list args;

	va_start(args, arg);
	take_args(argv, arg, &args);
	env = va_arg(args, char *const *);
	va_end(args);
	return execve(path, argv, env);
}

/* These fork inside libc, and the child never comes by here: what it will have
 * is made ready by its parent. */
PNO_EXPORT int posix_spawn(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions,
			   const posix_spawnattr_t *attr, char *const argv[], char *const env[])
{
	char **full;
	int rc;

	PNO_ENTER();
	full = complete(env);
	rc = real.posix_spawn(pid, path, actions, attr, argv, full);
	after(full, env);
	return rc;
}

PNO_EXPORT int posix_spawnp(pid_t *pid, const char *file, const posix_spawn_file_actions_t *actions,
			    const posix_spawnattr_t *attr, char *const argv[], char *const env[])
{
	char **full;
	int rc;

	PNO_ENTER();
	full = complete(env);
	rc = real.posix_spawnp(pid, file, actions, attr, argv, full);
	after(full, env);
	return rc;
}

PNO_EXPORT int posix_spawn_file_actions_adddup2(posix_spawn_file_actions_t *actions, int fd, int to)
{
	PNO_ENTER();
	pno_pass(fd); /* also if it is close-on-exec: its copy is not */
	return real.posix_spawn_file_actions_adddup2(actions, fd, to);
}

/* The shell that these start gets the program's environment as it is. */
PNO_EXPORT int system(const char *command)
{
	PNO_ENTER();
	if (command)
		hand_over();
	return real.system(command);
}

PNO_EXPORT FILE *popen(const char *command, const char *mode)
{
	PNO_ENTER();
	hand_over();
	return real.popen(command, mode);
}
