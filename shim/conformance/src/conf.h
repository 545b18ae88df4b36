/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What a topic writes its transcript with.
 *
 * A topic is a small program that makes socket calls and prints what came of
 * them. It runs on kernel sockets and on offloaded ones, and the two
 * transcripts must be the same, line by line. So nothing is printed that may
 * differ between two runs: no descriptor, no port, no process id, no time.
 *
 *   R(call)       one check: the call as it stands in the source, its result,
 *                 and the name of the errno if it is -1. Yields the result
 *   FD(call)      the same for a call that returns a descriptor
 *   TIMED(a,b,c)  the same for a call that must take a to b milliseconds
 *   READY(fd)     one check: what poll says at once, all events asked for
 *   AWAIT(fd,ev)  one check: waits until poll says one of ev (10 s at most)
 *   OPT(fd,l,n)   one check: getsockopt of an int
 *   WHERE(call)   one check: getsockname or getpeername with the address
 *
 * Lines that begin with a blank belong to the check before them: show_*().
 * SECTION(name) begins a section; a difference is reported with its name.
 *
 * A topic says in its first comment "conf: threads", and then runs under
 * ThreadSanitizer too, "conf: not sanitized" with the reason, or "conf: spliced"
 * if bytes must have been moved on the DPU.
 */
#ifndef CONF_H
#define CONF_H

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define SECTION(name) conf_section(name)
#define R(call) ({ errno = 0; conf_result(#call, (call)); })
#define FD(call) ({ errno = 0; conf_fd(#call, (call)); })
#define TIMED(least, most, call) \
	({ int64_t t_ = conf_now(); errno = 0; conf_timed(#call, (call), t_, (least), (most)); })
#define READY(fd) conf_ready(#fd, (fd))
#define AWAIT(fd, events) conf_await(#fd, (fd), (events))
#define OPT(fd, level, name) conf_opt(#fd, #name, (fd), (level), (name))
#define SETOPT(fd, level, name, value) conf_setopt(#fd, #name, #value, (fd), (level), (name), (value))
#define WHERE(call, fd) conf_where(#call, #fd, call, (fd))

void conf_section(const char *name);
long conf_result(const char *text, long rc);
int conf_fd(const char *text, int fd);
long conf_timed(const char *text, long rc, int64_t began, int least_ms, int most_ms);
void conf_ready(const char *name, int fd);
void conf_await(const char *name, int fd, short events);
void conf_opt(const char *fdname, const char *optname, int fd, int level, int name);
void conf_setopt(const char *fdname, const char *optname, const char *text, int fd, int level, int name, int value);
void conf_where(const char *call, const char *name, int (*fn)(int, struct sockaddr *, socklen_t *), int fd);
int64_t conf_now(void); /* milliseconds */

/* Further facts about the check before, on a line each. */
void show(const char *format, ...) __attribute__((format(printf, 1, 2)));
void show_bytes(const char *name, const void *data, size_t len); /* long ones as a sum */
void show_events(const char *name, short events);
void show_addr(const char *name, const void *sa, socklen_t len);
void show_signal(void); /* SIGPIPEs since the last time; see catch_signals */

/* From now on ports that show_addr meets are called by this name. */
void name_port(const struct sockaddr_storage *sa, const char *name);

/* The set-up of a test: not checks. On failure the program ends with status 2. */
void need(bool ok, const char *what);
struct sockaddr_storage loopback(int family, int port); /* AF_INET6: ::1 */
socklen_t addr_len(const struct sockaddr_storage *sa);
struct sockaddr_storage bound_to(int fd);
int listener(int family, struct sockaddr_storage *at); /* on a port of its own */
int dial(const struct sockaddr_storage *to);
void pair(int family, int *client, int *server); /* a connection */
void await_bytes(int fd, int n);                 /* until FIONREAD says n */
void await_events(int fd, short events);
void fill(void *to, size_t len); /* a pattern without period of a power of 2 */
void read_all(int fd, void *to, size_t len);
void write_all(int fd, const void *from, size_t len);
void catch_signals(int sig); /* counts them, without SA_RESTART */
extern volatile sig_atomic_t signals_caught;
void nap(int ms);

#define SA(ss) ((struct sockaddr *)&(ss))

/* A descriptor in a message of a Unix socket; -1 if none came with it. */
void pass_fd(int over, int fd);
int take_fd(int over);

#endif
