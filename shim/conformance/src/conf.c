/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The transcript, and the set-up that most topics need. Each line is written
 * at once, so that a program that crashes leaves what it has said; processes
 * and threads that share the transcript have to take turns.
 */
#include "conf.h"

#include <stdarg.h>
#include <time.h>

#define PATIENCE 10000 /* ms */
#define SECTION_LIMIT 40 /* s */

volatile sig_atomic_t signals_caught;

static struct {
	in_port_t port;
	const char *name;
} ports[64];
static unsigned nports;

/* Ends a program that hangs. Topics have SIGALRM to themselves. */
static timer_t watchdog;

__attribute__((constructor)) static void start(void)
{
	struct sigevent e = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMAX };

	setvbuf(stdout, NULL, _IOLBF, 0);
	need(timer_create(CLOCK_MONOTONIC, &e, &watchdog) == 0, "timer_create");
}

int64_t conf_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000ll + t.tv_nsec / 1000000;
}

void conf_section(const char *name)
{
	struct itimerspec limit = { .it_value.tv_sec = SECTION_LIMIT };

	printf("== %s\n", name);
	timer_settime(watchdog, 0, &limit, NULL);
}

static const char *error_name(int err)
{
	const char *name = strerrorname_np(err);

	return name ? name : "?";
}

long conf_result(const char *text, long rc)
{
	int err = errno;

	if (rc == -1)
		printf("%s = -1 %s\n", text, error_name(err));
	else
		printf("%s = %ld\n", text, rc);
	errno = err;
	return rc;
}

int conf_fd(const char *text, int fd)
{
	int err = errno;

	if (fd < 0)
		printf("%s = -1 %s\n", text, error_name(err));
	else
		printf("%s = a descriptor\n", text);
	errno = err;
	return fd;
}

long conf_timed(const char *text, long rc, int64_t began, int least_ms, int most_ms)
{
	int err = errno;
	int64_t took = conf_now() - began;

	conf_result(text, rc);
	if (took < least_ms)
		show("after %lld ms, too early", (long long)took);
	else if (took > most_ms)
		show("after %lld ms, too late", (long long)took);
	else
		show("in time");
	errno = err;
	return rc;
}

void show(const char *format, ...)
{
	va_list args;

	fputs("  ", stdout);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	putchar('\n');
}

static uint64_t sum(const uint8_t *p, size_t len)
{
	uint64_t h = 0xcbf29ce484222325;

	for (size_t i = 0; i < len; i++)
		h = (h ^ p[i]) * 0x100000001b3;
	return h;
}

void show_bytes(const char *name, const void *data, size_t len)
{
	const uint8_t *p = data;

	printf("  %s: ", name);
	if (len > 64) {
		printf("%zu bytes, sum %016llx\n", len, (unsigned long long)sum(p, len));
		return;
	}
	for (size_t i = 0; i < len; i++)
		if (p[i] >= ' ' && p[i] < 127 && p[i] != '\\')
			putchar(p[i]);
		else
			printf("\\x%02x", p[i]);
	putchar('\n');
}

static void print_events(short events)
{
	static const struct {
		short bit;
		const char *name;
	} names[] = {
		{ POLLIN, "IN" }, { POLLPRI, "PRI" }, { POLLOUT, "OUT" }, { POLLERR, "ERR" },
		{ POLLHUP, "HUP" }, { POLLNVAL, "NVAL" }, { POLLRDNORM, "RDNORM" },
		{ POLLRDBAND, "RDBAND" }, { POLLWRNORM, "WRNORM" }, { POLLWRBAND, "WRBAND" },
		{ POLLRDHUP, "RDHUP" },
	};

	if (!events)
		fputs(" nothing", stdout);
	for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
		if (events & names[i].bit)
			printf(" %s", names[i].name);
	putchar('\n');
}

void show_events(const char *name, short events)
{
	printf("  %s:", name);
	print_events(events);
}

void conf_ready(const char *name, int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN | POLLOUT | POLLPRI | POLLRDHUP };
	int rc = poll(&p, 1, 0);

	printf("poll(%s) = %d:", name, rc);
	print_events(p.revents);
}

static short wait_for(int fd, short events)
{
	int64_t end = conf_now() + PATIENCE;
	struct pollfd p = { .fd = fd, .events = events };

	do {
		p.revents = 0;
		poll(&p, 1, 100);
		if (p.revents & events)
			break;
		if (p.revents)
			nap(2); /* ready, but not as asked: HUP and ERR end every poll */
	} while (conf_now() < end);
	return p.revents & events;
}

void conf_await(const char *name, int fd, short events)
{
	short got = wait_for(fd, events);

	printf("await(%s):", name);
	print_events(got);
}

void await_events(int fd, short events)
{
	if (!wait_for(fd, events))
		printf("nothing came of events %#x\n", events);
}

void conf_opt(const char *fdname, const char *optname, int fd, int level, int name)
{
	int v = -77, rc;
	socklen_t len = sizeof v;

	errno = 0;
	rc = getsockopt(fd, level, name, &v, &len);
	if (rc < 0)
		printf("getsockopt(%s, %s) = -1 %s\n", fdname, optname, error_name(errno));
	else
		printf("getsockopt(%s, %s) = %d: %d, %u bytes\n", fdname, optname, rc, v, len);
}

void conf_setopt(const char *fdname, const char *optname, const char *text, int fd, int level, int name, int value)
{
	int rc;

	errno = 0;
	rc = setsockopt(fd, level, name, &value, sizeof value);
	printf("setsockopt(%s, %s, %s) = %d%s%s\n", fdname, optname, text, rc, rc ? " " : "", rc ? error_name(errno) : "");
}

void conf_where(const char *call, const char *name, int (*fn)(int, struct sockaddr *, socklen_t *), int fd)
{
	struct sockaddr_storage ss;
	socklen_t len = sizeof ss;
	int rc;

	memset(&ss, 0, sizeof ss);
	errno = 0;
	rc = fn(fd, SA(ss), &len);
	printf("%s(%s) = %d%s%s\n", call, name, rc, rc ? " " : "", rc ? error_name(errno) : "");
	if (rc == 0)
		show_addr("address", &ss, len);
}

static in_port_t port_of(const void *sa)
{
	const struct sockaddr_storage *ss = sa;

	return ss->ss_family == AF_INET6 ? ((const struct sockaddr_in6 *)sa)->sin6_port :
					   ((const struct sockaddr_in *)sa)->sin_port;
}

void name_port(const struct sockaddr_storage *sa, const char *name)
{
	in_port_t port = port_of(sa);

	for (unsigned i = 0; i < nports; i++)
		if (ports[i].port == port) {
			ports[i].name = name;
			return;
		}
	need(nports < sizeof ports / sizeof ports[0], "room for another port");
	ports[nports].port = port;
	ports[nports++].name = name;
}

static const char *port_name(in_port_t port)
{
	if (!port)
		return "0";
	for (unsigned i = 0; i < nports; i++)
		if (ports[i].port == port)
			return ports[i].name;
	return "some port";
}

void show_addr(const char *name, const void *sa, socklen_t len)
{
	const struct sockaddr_storage *ss = sa;
	char text[INET6_ADDRSTRLEN] = "";

	if (len < sizeof(sa_family_t)) {
		show("%s: %u bytes", name, len);
		return;
	}
	if (ss->ss_family == AF_INET)
		inet_ntop(AF_INET, &((const struct sockaddr_in *)sa)->sin_addr, text, sizeof text);
	else if (ss->ss_family == AF_INET6)
		inet_ntop(AF_INET6, &((const struct sockaddr_in6 *)sa)->sin6_addr, text, sizeof text);
	else {
		show("%s: family %d, %u bytes", name, ss->ss_family, len);
		return;
	}
	show("%s: %s %s %s, %u bytes", name, ss->ss_family == AF_INET ? "inet" : "inet6", text,
	     port_name(port_of(sa)), len);
}

void show_signal(void)
{
	show("%d signals", (int)signals_caught);
	signals_caught = 0;
}

void need(bool ok, const char *what)
{
	if (ok)
		return;
	printf("set-up failed: %s: %s\n", what, error_name(errno));
	exit(2);
}

struct sockaddr_storage loopback(int family, int port)
{
	struct sockaddr_storage ss;

	memset(&ss, 0, sizeof ss);
	ss.ss_family = family;
	if (family == AF_INET6) {
		((struct sockaddr_in6 *)&ss)->sin6_addr = in6addr_loopback;
		((struct sockaddr_in6 *)&ss)->sin6_port = htons(port);
	} else {
		((struct sockaddr_in *)&ss)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		((struct sockaddr_in *)&ss)->sin_port = htons(port);
	}
	return ss;
}

socklen_t addr_len(const struct sockaddr_storage *sa)
{
	return sa->ss_family == AF_INET6 ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in);
}

struct sockaddr_storage bound_to(int fd)
{
	struct sockaddr_storage ss;
	socklen_t len = sizeof ss;

	memset(&ss, 0, sizeof ss);
	need(getsockname(fd, SA(ss), &len) == 0, "getsockname");
	return ss;
}

int listener(int family, struct sockaddr_storage *at)
{
	struct sockaddr_storage any = loopback(family, 0);
	int fd = socket(family, SOCK_STREAM, 0);

	need(fd >= 0, "socket");
	need(bind(fd, SA(any), addr_len(&any)) == 0, "bind");
	need(listen(fd, 16) == 0, "listen");
	*at = bound_to(fd);
	return fd;
}

int dial(const struct sockaddr_storage *to)
{
	int fd = socket(to->ss_family, SOCK_STREAM, 0);

	need(fd >= 0, "socket");
	need(connect(fd, (const struct sockaddr *)to, addr_len(to)) == 0, "connect");
	return fd;
}

void pair(int family, int *client, int *server)
{
	struct sockaddr_storage at;
	int l = listener(family, &at);

	*client = dial(&at);
	*server = accept(l, NULL, NULL);
	need(*server >= 0, "accept");
	close(l);
}

void await_bytes(int fd, int n)
{
	int64_t end = conf_now() + PATIENCE;
	int there = 0;

	do {
		if (ioctl(fd, FIONREAD, &there) == 0 && there >= n)
			return;
		nap(1);
	} while (conf_now() < end);
	printf("%d bytes did not come, but %d\n", n, there);
}

void fill(void *to, size_t len)
{
	uint8_t *p = to;

	for (size_t i = 0; i < len; i++)
		p[i] = i * 7 + i / 251;
}

void read_all(int fd, void *to, size_t len)
{
	for (size_t done = 0; done < len;) {
		ssize_t n = read(fd, (char *)to + done, len - done);

		if (n < 0 && errno == EAGAIN) {
			await_events(fd, POLLIN);
			continue;
		}
		need(n > 0, "read");
		done += n;
	}
}

void write_all(int fd, const void *from, size_t len)
{
	for (size_t done = 0; done < len;) {
		ssize_t n = write(fd, (const char *)from + done, len - done);

		if (n < 0 && errno == EAGAIN) {
			await_events(fd, POLLOUT);
			continue;
		}
		need(n > 0, "write");
		done += n;
	}
}

static void caught(int sig)
{
	(void)sig;
	signals_caught++;
}

void catch_signals(int sig)
{
	struct sigaction sa = { .sa_handler = caught };

	need(sigaction(sig, &sa, NULL) == 0, "sigaction");
}

void nap(int ms)
{
	struct timespec t = { .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000l };

	while (nanosleep(&t, &t) < 0 && errno == EINTR)
		;
}

void pass_fd(int over, int fd)
{
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} u = { 0 };
	struct iovec iov = { "x", 1 };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = u.buf, .msg_controllen = sizeof u.buf };
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &fd, sizeof fd);
	need(sendmsg(over, &m, 0) == 1, "sendmsg");
}

int take_fd(int over)
{
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} u = { 0 };
	char byte;
	struct iovec iov = { &byte, 1 };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = u.buf, .msg_controllen = sizeof u.buf };
	int fd = -1;

	need(recvmsg(over, &m, 0) == 1, "recvmsg");
	if (CMSG_FIRSTHDR(&m))
		memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof fd);
	return fd;
}
