/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Processes: connections and listeners in the children of fork, over exec,
 * posix_spawn and vfork, and over a Unix socket; an epoll instance after a
 * fork; daemons; children with other rights, another root, few descriptors or
 * a system call filter; programs that close what they did not open.
 *
 * Parent and child take turns, so that the transcript has one order.
 */
#include "conf.h"

#include <linux/close_range.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <spawn.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

extern char **environ;
static char *self;

/* What a child says ends with its exit status, which is a check. */
static void in_child(void (*fn)(int), int arg)
{
	pid_t pid = fork();
	int status = -1;

	if (pid == 0) {
		fn(arg);
		fflush(stdout);
		_exit(0);
	}
	need(pid > 0, "fork");
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	R(status);
}

static void reads_and_answers(int s)
{
	char b[16];

	R(recv(s, b, 16, 0));
	R(send(s, "answer", 6, 0));
}

static void connection_in_child(void)
{
	int c, s;
	char b[16];

	pair(AF_INET, &c, &s);
	write_all(c, "for the child", 13);
	await_bytes(s, 13);
	in_child(reads_and_answers, s);
	R(recv(c, b, 16, 0));
	/* The parent goes on with it, after what the child has read. */
	write_all(c, "parent", 6);
	R(recv(s, b, 16, 0));
	/* The child's exit did not end it, the last close does. */
	close(s);
	R(recv(c, b, 16, 0));
	close(c);
}

static void closes_and_exits(int s)
{
	R(close(s));
}

static void close_in_child(void)
{
	int c, s;
	char b[16];

	pair(AF_INET, &c, &s);
	in_child(closes_and_exits, s);
	write_all(c, "still here", 10);
	R(recv(s, b, 16, 0));
	R(send(s, "and back", 8, 0));
	R(recv(c, b, 16, 0));
	close(c), close(s);
}

/* A prefork server: the children accept from the parent's listener. */
static void accepts(int l)
{
	int s = FD(accept(l, NULL, NULL));

	R(send(s, "hello", 5, 0));
	close(s);
}

static void listener_in_children(void)
{
	struct sockaddr_storage at;
	int l = listener(AF_INET, &at);
	char b[16];

	for (int i = 0; i < 2; i++) {
		int c = dial(&at);

		in_child(accepts, l);
		R(recv(c, b, 16, MSG_WAITALL));
		close(c);
	}
	close(l);
}

static void listens(int report)
{
	struct sockaddr_storage at;
	int l = listener(AF_INET, &at), c, s;
	char b[8];

	c = dial(&at);
	s = FD(accept(l, NULL, NULL));
	write_all(c, "x", 1);
	R(recv(s, b, 8, 0));
	(void)report;
}

static void of_its_own(void)
{
	in_child(listens, 0);
	in_child(listens, 0);
}

static int instance;

static void waits(int s)
{
	struct epoll_event ev;
	char b[8];

	R(epoll_wait(instance, &ev, 1, 5000));
	R(ev.data.u32);
	R(recv(s, b, 8, 0));
}

static void instance_in_child(void)
{
	struct epoll_event ev = { .events = EPOLLIN, .data.u32 = 3 };
	int c, s;

	instance = epoll_create1(0);
	pair(AF_INET, &c, &s);
	R(epoll_ctl(instance, EPOLL_CTL_ADD, s, &ev));
	write_all(c, "a", 1);
	in_child(waits, s);
	/* And then the parent again. */
	write_all(c, "b", 1);
	waits(s);
	close(c), close(s), close(instance);
}

/* The program itself, started anew with a descriptor. */
static void started(int fd, const char *what)
{
	char b[16];

	if (!strcmp(what, "connection")) {
		R(recv(fd, b, 16, 0));
		R(send(fd, "exec", 4, 0));
	} else if (!strcmp(what, "idle")) {
		need(read(fd, b, 1) == 0, "read");
	} else {
		int s = FD(accept(fd, NULL, NULL));

		R(send(s, "exec", 4, 0));
		close(s);
	}
	fflush(stdout);
}

enum how { FORK, VFORK, SPAWN, EXECL, EXECLP, EXECLE, FEXECVE, EXECVEAT, RAW, SYSTEM, POPEN };

/* In a child: starts the program in its place. */
static void become(enum how how, char **argv)
{
	int file = open(self, O_RDONLY | O_CLOEXEC);

	switch (how) {
	case EXECL: execl(self, argv[0], argv[1], argv[2], (char *)NULL); break;
	case EXECLP: execlp(self, argv[0], argv[1], argv[2], (char *)NULL); break;
	case EXECLE: execle(self, argv[0], argv[1], argv[2], (char *)NULL, environ); break;
	case FEXECVE: fexecve(file, argv, environ); break;
	case EXECVEAT: execveat(AT_FDCWD, self, argv, environ, 0); break;
	case RAW: syscall(SYS_execveat, file, "", argv, environ, AT_EMPTY_PATH); break;
	default: execv(self, argv);
	}
	_exit(9);
}

/* By a shell, which is /proc/self/exe itself. */
static int by_shell(enum how how, char **argv)
{
	char program[256] = "", line[512];
	FILE *f;

	need(readlink(self, program, sizeof program - 1) > 0, "readlink");
	snprintf(line, sizeof line, "'%s' %s %s", program, argv[1], argv[2]);
	if (how == SYSTEM)
		return system(line);
	f = popen(line, "w");
	need(f != NULL, "popen");
	return pclose(f);
}

static void start(enum how how, int fd, const char *what)
{
	char number[16], *argv[] = { self, number, (char *)what, NULL };
	int status = -1;
	pid_t pid = -1;

	snprintf(number, sizeof number, "%d", fd);
	if (how == SYSTEM || how == POPEN) {
		fflush(stdout);
		R(by_shell(how, argv));
		return;
	}
	if (how == SPAWN) {
		need(posix_spawn(&pid, self, NULL, NULL, argv, environ) == 0, "posix_spawn");
	} else {
		pid = how == VFORK ? vfork() : fork();
		if (pid == 0)
			become(how, argv);
	}
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	R(status);
}

/* The child has it under another number. */
static void connection_by_action(void)
{
	char *argv[] = { self, "30", "connection", NULL }, b[16];
	posix_spawn_file_actions_t actions;
	int c, s, status = -1;
	pid_t pid;

	pair(AF_INET, &c, &s);
	fcntl(s, F_SETFD, FD_CLOEXEC);
	write_all(c, "over exec", 9);
	posix_spawn_file_actions_init(&actions);
	R(posix_spawn_file_actions_adddup2(&actions, s, 30));
	need(posix_spawn(&pid, self, &actions, NULL, argv, environ) == 0, "posix_spawn");
	posix_spawn_file_actions_destroy(&actions);
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	R(status);
	R(recv(c, b, 4, MSG_WAITALL));
	R(send(c, "more", 4, 0));
	R(recv(s, b, 16, 0));
	close(c), close(s);
}

static void connection_over_exec(enum how how)
{
	int c, s;
	char b[16];

	pair(AF_INET, &c, &s);
	write_all(c, "over exec", 9);
	start(how, s, "connection");
	R(recv(c, b, 4, MSG_WAITALL));
	R(send(c, "more", 4, 0));
	R(recv(s, b, 16, 0));
	close(c), close(s);
}

/* The parent reads on while a child that has the connection, too, starts another
 * program. That one knows nothing of it, and has it open until it ends. */
static void beside_the_reader(void)
{
	int c, s, go[2], gone[2], status;
	char b[16];
	pid_t pid;

	pair(AF_INET, &c, &s);
	need(pipe(go) == 0 && pipe2(gone, O_CLOEXEC) == 0, "pipe");
	fcntl(c, F_SETFD, FD_CLOEXEC);
	fcntl(go[1], F_SETFD, FD_CLOEXEC);
	fflush(stdout);
	pid = fork();
	if (pid == 0) {
		char number[16], *argv[] = { self, number, "idle", NULL };

		snprintf(number, sizeof number, "%d", go[0]);
		read_all(go[0], b, 1);
		execv(self, argv);
		_exit(9);
	}
	close(gone[1]);
	write_all(c, "reads on", 8);
	R(recv(s, b, 8, MSG_WAITALL));
	write_all(go[1], "x", 1);
	need(read(gone[0], b, 1) == 0, "exec");
	write_all(c, "and on", 6);
	R(recv(s, b, 6, MSG_WAITALL));
	close(s), close(go[1]), close(gone[0]);
	need(waitpid(pid, &status, 0) == pid, "waitpid");
	R(status);
	R(recv(c, b, 16, 0));
	close(c), close(go[0]);
}

static void over_exec(enum how how)
{
	struct sockaddr_storage at;
	int c, l = listener(AF_INET, &at);
	char b[16];

	c = dial(&at);
	start(how, l, "listener");
	R(recv(c, b, 4, MSG_WAITALL));
	close(c), close(l);
	connection_over_exec(how);
}

/* A child makes a connection or a listener, and sends it up. */
static void sends_listener(int over)
{
	struct sockaddr_storage at;
	int l = listener(AF_INET, &at);

	pass_fd(over, l);
	write_all(over, &at, sizeof at);
	read_all(over, &at, 1); /* it has arrived */
}

static void over_unix(void)
{
	struct sockaddr_storage at;
	int ends[2], l, c, s;
	char b[8];
	pid_t pid;

	need(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0, "socketpair");
	pid = fork();
	if (pid == 0) {
		sends_listener(ends[1]);
		fflush(stdout);
		_exit(0);
	}
	l = FD(take_fd(ends[0]));
	read_all(ends[0], &at, sizeof at);
	write_all(ends[0], "x", 1);
	waitpid(pid, NULL, 0);
	/* The child is gone, its listener is ours. */
	c = dial(&at);
	s = FD(accept(l, NULL, NULL));
	write_all(c, "up", 2);
	R(recv(s, b, 8, 0));
	close(c), close(s), close(l), close(ends[0]), close(ends[1]);
}

/* As the one before, but nobody has the listener while the message is under way. */
static void in_message_only(bool exits)
{
	struct sockaddr_storage at;
	int ends[2], l, c, s;
	char b[8];
	pid_t pid;

	need(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0, "socketpair");
	pid = fork();
	if (pid == 0) {
		l = listener(AF_INET, &at);
		pass_fd(ends[1], l);
		write_all(ends[1], &at, sizeof at);
		if (!exits) {
			close(l);
			read_all(ends[1], b, 1);
		}
		fflush(stdout);
		_exit(0);
	}
	if (exits)
		waitpid(pid, NULL, 0);
	usleep(100000);
	l = FD(take_fd(ends[0]));
	read_all(ends[0], &at, sizeof at);
	c = dial(&at);
	s = FD(accept(l, NULL, NULL));
	write_all(c, "up", 2);
	R(recv(s, b, 8, 0));
	if (!exits) {
		write_all(ends[0], "x", 1);
		waitpid(pid, NULL, 0);
	}
	close(c), close(s), close(l), close(ends[0]), close(ends[1]);
}

static void talks(int arg)
{
	int c, s;
	char b[8];

	(void)arg;
	pair(AF_INET, &c, &s);
	write_all(c, "ok", 2);
	R(recv(s, b, 8, 0));
	close(c);
	R(recv(s, b, 8, 0));
	close(s);
}

static void daemon_talks(int arg)
{
	pid_t pid;
	int p[2];
	char b;

	/* daemon(3) in a child, whose own child does the talking. */
	need(pipe(p) == 0, "pipe");
	pid = fork();
	if (pid == 0) {
		R(setsid() > 0);
		if (fork())
			_exit(0);
		talks(arg);
		fflush(stdout);
		_exit(0);
	}
	waitpid(pid, NULL, 0);
	close(p[1]);
	while (read(p[0], &b, 1) < 0)
		; /* until the daemon has gone */
}

static void other_user(int arg)
{
	R(setgid(65534));
	R(setuid(65534));
	talks(arg);
}

static void other_root(int arg)
{
	R(chroot("/proc/self/fdinfo"));
	R(chdir("/"));
	talks(arg);
}

static void few_descriptors(int arg)
{
	struct rlimit lim = { 40, 40 };

	R(setrlimit(RLIMIT_NOFILE, &lim));
	talks(arg);
}

/* No process may be started, no file be opened. */
static void filtered(int arg)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_execve, 1, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_openat, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = { sizeof code / sizeof code[0], code };

	R(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	R(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog));
	FD(open("/dev/null", O_RDONLY));
	talks(arg);
}

static void closes_from(int arg)
{
	closefrom(3);
	talks(arg);
	R(close_range(3, ~0u, 0));
	talks(arg);
	for (int fd = 3; fd < 1024; fd++)
		close(fd);
	talks(arg);
}

static void marks_all(int arg)
{
	(void)arg;
	R(close_range(3, ~0u, CLOSE_RANGE_CLOEXEC));
	talks(arg);
}

static void survive(void)
{
	int c, s;
	char b[8];

	/* The children close and limit theirs; ours goes on. */
	pair(AF_INET, &c, &s);
	in_child(closes_from, 0);
	in_child(marks_all, 0);
	in_child(few_descriptors, 0);
	in_child(filtered, 0);
	write_all(c, "still", 5);
	R(recv(s, b, 8, 0));
	close(c), close(s);
}

int main(int argc, char **argv)
{
	self = "/proc/self/exe";
	if (argc == 3) {
		started(atoi(argv[1]), argv[2]);
		return 0;
	}
	SECTION("connection in a child");
	connection_in_child();
	SECTION("closed in a child");
	close_in_child();
	SECTION("listener in children");
	listener_in_children();
	SECTION("of its own");
	of_its_own();
	SECTION("instance in a child");
	instance_in_child();
	SECTION("fork and exec");
	over_exec(FORK);
	SECTION("vfork");
	over_exec(VFORK);
	SECTION("posix_spawn");
	over_exec(SPAWN);
	SECTION("posix_spawn with actions");
	connection_by_action();
	for (enum how how = EXECL; how <= POPEN; how++) {
		static const char *const names[] = {
			[EXECL] = "execl", "execlp", "execle", "fexecve", "execveat", "raw execveat", "system", "popen",
		};

		SECTION(names[how]);
		connection_over_exec(how);
	}
	SECTION("exec beside the reader");
	beside_the_reader();
	SECTION("over a Unix socket");
	over_unix();
	SECTION("in a message only");
	in_message_only(true);
	in_message_only(false);
	SECTION("daemon");
	in_child(daemon_talks, 0);
	SECTION("other rights");
	if (geteuid() == 0) {
		in_child(other_user, 0);
		in_child(other_root, 0);
	}
	SECTION("what children do to themselves");
	survive();
	return 0;
}
