/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Talking to hostd: connect, hello, one request at a time.
 *
 * A restart of hostd shows as the end of the connection at the next request.
 * Then we connect again and say HELLO with our session and its descriptors, so
 * that the new hostd adopts what runs; the data path never notices.
 */
#include "hostd.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

#include "fdtable.h"
#include "log.h"
#include "quiet.h"
#include "real.h"

#define ANSWER_SECONDS 10

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static int conn = -1;
static uint32_t next_id;

/* Read at start-up: nginx, for one, rewrites its environment later. */
static char socket_path[sizeof ((struct sockaddr_un *)0)->sun_path] = PNO_ATTACH_DEFAULT;
static char policy_path[PNO_POLICY_LEN];
static char name[PNO_NAME_LEN]; /* nginx rewrites its arguments, too */

void pno_hostd_start(void)
{
	const char *path = getenv("PNO_HOSTD"), *policy = getenv("PNO_POLICY_FILE");

	strncpy(name, program_invocation_short_name, sizeof name - 1);
	if (path && *path && strlen(path) < sizeof socket_path)
		strcpy(socket_path, path);
	else if (path && *path)
		pno_log(PNO_ERROR, "PNO_HOSTD is too long for a socket path: %s", path);
	if (policy && strlen(policy) < sizeof policy_path)
		strcpy(policy_path, policy);
}

const char *pno_hostd_path(void)
{
	return socket_path;
}

/* Any answer fits. */
union answer {
	struct pno_msg h;
	struct pno_msg_welcome welcome;
	struct pno_msg_refused refused;
	struct pno_msg_socket socket;
	struct pno_msg_channel channel;
	struct pno_msg_ack ack;
};

void pno_hostd_lock(void)
{
	pno_section_enter();
	pthread_mutex_lock(&mutex);
}

void pno_hostd_unlock(void)
{
	pthread_mutex_unlock(&mutex);
	pno_section_leave();
}

void pno_hostd_child(void)
{
	pthread_mutex_init(&mutex, NULL);
	conn = -1;
}

static int dial(void)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	struct timeval patience = { .tv_sec = ANSWER_SECONDS };
	int fd, err;

	strcpy(sa.sun_path, socket_path);
	fd = real.socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	/* hostd answers at once; should it hang, the program must not. */
	if (real.setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) < 0 ||
	    quiet_connect(fd, (struct sockaddr *)&sa, sizeof sa) < 0) {
		err = -errno;
		quiet_close(fd);
		return err;
	}
	fd = pno_fd_own(fd);
	return fd < 0 ? -EMFILE : fd;
}

static int send_msg(void *req, uint16_t type, size_t len, const int *fd, int nfd)
{
	struct pno_msg *h = req;
	struct iovec iov = { req, len };
	char control[CMSG_SPACE(sizeof(int) * (PNO_MAX_CHANNELS + 1))] = { 0 };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1 };
	ssize_t n;

	*h = (struct pno_msg){ PNO_ATTACH_MAGIC, PNO_ATTACH_VERSION, type, len, ++next_id };
	if (nfd) {
		struct cmsghdr *c;

		m.msg_control = control;
		m.msg_controllen = CMSG_SPACE(sizeof(int) * nfd);
		c = CMSG_FIRSTHDR(&m);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int) * nfd);
		memcpy(CMSG_DATA(c), fd, sizeof(int) * nfd);
	}
	do
		n = quiet_sendmsg(conn, &m, MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	return n < 0 ? errno : 0;
}

static void take_fds(struct msghdr *m, struct pno_fdset *fds)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
		int n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		for (int i = 0; i < n; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
			if (fds && fds->n < PNO_MAX_FDS)
				fds->fd[fds->n++] = fd;
			else
				quiet_close(fd);
		}
	}
}

static int recv_msg(union answer *a, struct pno_fdset *fds)
{
	struct iovec iov = { a, sizeof *a };
	char control[CMSG_SPACE(sizeof(int) * PNO_MAX_FDS)];
	struct msghdr m = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = control, .msg_controllen = sizeof control,
	};
	ssize_t n;

	do
		n = quiet_recvmsg(conn, &m, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return errno;
	take_fds(&m, fds);
	if (n == 0)
		return ECONNRESET;
	if ((size_t)n < sizeof a->h || a->h.magic != PNO_ATTACH_MAGIC ||
	    a->h.version != PNO_ATTACH_VERSION || a->h.size != (uint32_t)n || a->h.id != next_id)
		return EPROTO;
	return 0;
}

static void close_fds(struct pno_fdset *fds)
{
	while (fds && fds->n)
		quiet_close(fds->fd[--fds->n]);
}

static void hang_up(void)
{
	pno_fd_disown(conn);
	conn = -1;
}

/* One request on the present connection. */
static int transact(void *req, uint16_t type, size_t len, const int *sfd, int nsfd,
		    void *ans, uint16_t ans_type, size_t ans_len, struct pno_fdset *fds, int *fallback)
{
	union answer a;
	int err;

	if (fds)
		fds->n = 0;
	err = send_msg(req, type, len, sfd, nsfd);
	if (!err)
		err = recv_msg(&a, fds);
	if (err) {
		close_fds(fds);
		hang_up();
		return err;
	}
	if (a.h.type == ans_type && a.h.size == ans_len) {
		memcpy(ans, &a, ans_len);
		return 0;
	}
	close_fds(fds);
	if (a.h.type == PNO_MSG_REFUSED && a.h.size == sizeof a.refused) {
		a.refused.text[sizeof a.refused.text - 1] = 0;
		if (type == PNO_MSG_HELLO)
			pno_log_once("hostd refuses this process: %s", a.refused.text);
		if (fallback && a.refused.fallback)
			*fallback = a.refused.fallback;
		return a.refused.err > 0 ? a.refused.err : EPROTO;
	}
	hang_up();
	return EPROTO;
}

static void fill_hello(struct pno_msg_hello *m, const uint8_t *token)
{
	memset(m, 0, sizeof *m);
	m->abi_major = PNO_VERSION_MAJOR;
	m->abi_minor = PNO_VERSION_MINOR;
	m->features = PNO_FEATURE_UDP;
	if (token) {
		m->flags = PNO_HELLO_TOKEN;
		memcpy(m->token, token, sizeof m->token);
	}
	memcpy(m->name, name, sizeof m->name);
	strcpy(m->policy, policy_path);
}

int pno_hostd_attach(const uint8_t *token, struct pno_msg_welcome *w, struct pno_fdset *fds, int *fallback)
{
	struct pno_msg_hello hello;
	int err;

	pno_hostd_lock();
	if (conn >= 0)
		hang_up();
	fill_hello(&hello, token);
	conn = dial();
	if (conn < 0) {
		err = -conn;
		conn = -1;
	} else {
		err = transact(&hello, PNO_MSG_HELLO, sizeof hello, NULL, 0,
			       w, PNO_MSG_WELCOME, sizeof *w, fds, fallback);
		if (err && conn >= 0)
			hang_up();
	}
	pno_hostd_unlock();
	return err;
}

/* A new hostd adopts the running session. */
static int readopt(struct pno_session *ses)
{
	struct pno_msg_hello hello;
	struct pno_msg_welcome w;
	int fd[PNO_MAX_CHANNELS + 1], n = 0, err;

	conn = dial();
	if (conn < 0) {
		err = -conn;
		conn = -1;
		return err;
	}
	fill_hello(&hello, NULL);
	hello.session = ses->id;
	fd[n++] = ses->memory;
	for (unsigned i = 0; i < ses->nchan; i++)
		fd[n++] = ses->chan[i]->irq;
	err = transact(&hello, PNO_MSG_HELLO, sizeof hello, fd, n,
		       &w, PNO_MSG_WELCOME, sizeof w, NULL, NULL);
	if (err && conn >= 0)
		hang_up();
	return err;
}

int pno_hostd_ready(struct pno_session *ses)
{
	struct pno_msg_ready m;
	struct pno_msg_ack ack;

	return pno_hostd_ask(ses, &m, PNO_MSG_READY, sizeof m, -1, &ack, PNO_MSG_ACK, sizeof ack, NULL);
}

int pno_hostd_ask_with(struct pno_session *ses, void *req, uint16_t type, size_t len, const int *sfd, int nsfd,
		       void *ans, uint16_t ans_type, size_t ans_len, struct pno_fdset *fds)
{
	int err = ECONNRESET;

	pno_hostd_lock();
	for (int tries = 0; tries < 2; tries++) {
		if (conn < 0 && (err = readopt(ses)))
			break;
		err = transact(req, type, len, sfd, nsfd, ans, ans_type, ans_len, fds, NULL);
		if (conn >= 0)
			break;
	}
	pno_hostd_unlock();
	return err;
}

int pno_hostd_ask(struct pno_session *ses, void *req, uint16_t type, size_t len, int proof,
		  void *ans, uint16_t ans_type, size_t ans_len, struct pno_fdset *fds)
{
	return pno_hostd_ask_with(ses, req, type, len, &proof, proof >= 0, ans, ans_type, ans_len, fds);
}

void pno_hostd_forked(const uint8_t *token, pid_t pid)
{
	struct pno_msg_forked m = { .pid = pid };

	if (conn < 0)
		return;
	memcpy(m.token, token, sizeof m.token);
	if (send_msg(&m, PNO_MSG_FORKED, sizeof m, NULL, 0))
		pno_log(PNO_ERROR, "cannot tell hostd of this fork: inherited connections will be dropped");
}
