/* SPDX-License-Identifier: Apache-2.0 */

/*
 * hostd and a DPU for one process, as two threads. The far end of connections
 * is played by port number (fake_dpu.h). One lock covers the DPU's state; it
 * sleeps on its doorbells like a real one.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/un.h>
#include <unistd.h>

#include "fake_dpu.h"
#include "hostd.h"
#include "real.h"

#define SOCKS 4096
#define WINDOW 65536u

struct fsock {
	bool used, listening, mine; /* mine: the handle is the DPU's choice */
	uint32_t handle;
	unsigned shard;
	int home;     /* channel */
	uint16_t port;
	uint64_t rx;  /* received from the host */
	uint64_t tx;  /* sent to the host */
	uint64_t used_by_host; /* of tx, consumed */
	uint64_t taken_told;
	uint64_t todo; /* bytes to generate */
	bool fin, fin_sent, reset, dgram;
	struct pno_addr peer; /* of a datagram socket */
	uint8_t *echo; /* bytes to send back */
	uint64_t echo_off, echo_len, echo_cap;
	bool subscribed[PNO_MAX_CHANNELS];
};

static struct {
	pthread_t hostd, dpu;
	pthread_mutex_t lock;
	char path[108];
	int listener, stop;
	uint8_t *mem;
	int memfd;
	uint64_t total, stride;
	unsigned shards;
	uint32_t ring;
	int doorbell[PNO_MAX_SHARDS];
	struct fake_qp qp[PNO_MAX_CHANNELS][PNO_MAX_SHARDS];
	unsigned channels, sessions;
	struct fsock sock[SOCKS];
	uint32_t next_handle;
	uint16_t next_port;
} f = { .lock = PTHREAD_MUTEX_INITIALIZER };

static struct fsock *sock_of(unsigned shard, uint32_t handle)
{
	for (int i = 0; i < SOCKS; i++)
		if (f.sock[i].used && f.sock[i].handle == handle && f.sock[i].shard == shard)
			return &f.sock[i];
	return NULL;
}

static struct fsock *sock_add(unsigned shard, uint32_t handle, int home)
{
	for (int i = 0; i < SOCKS; i++) {
		struct fsock *s = &f.sock[i];

		if (s->used)
			continue;
		memset(s, 0, sizeof *s);
		s->used = true;
		s->handle = handle;
		s->shard = shard;
		s->home = home;
		return s;
	}
	CHECK(!"too many sockets");
	return NULL;
}

static bool post(struct fsock *s, uint8_t op, uint32_t seq, uint32_t ack, const void *p, uint16_t n)
{
	struct fake_qp *q = &f.qp[s->home][s->shard];

	if (!fake_put(q, (struct pno_record){ .op = op, .len = n, .sock = s->handle, .seq = seq, .ack = ack }, p))
		return false;
	fake_publish(q);
	return true;
}

static void reply(struct fake_qp *q, const struct pno_record *r, uint32_t err, const void *p, uint16_t n)
{
	CHECK(fake_put(q, (struct pno_record){
		.op = PNO_OP_REPLY, .len = n, .sock = r->sock, .seq = r->seq, .ack = err }, p));
	fake_publish(q);
}

static bool serve(struct fsock *s)
{
	uint8_t buf[PNO_MAX_PAYLOAD];
	uint64_t room = WINDOW - (s->tx - s->used_by_host), n;
	bool did = false;

	while ((s->todo || s->echo_len > s->echo_off) && room) {
		n = s->todo ? s->todo : s->echo_len - s->echo_off;
		n = n < room ? n : room;
		n = n < sizeof buf ? n : sizeof buf;
		if (s->todo)
			for (uint64_t i = 0; i < n; i++)
				buf[i] = pattern(s->tx + i);
		else
			memcpy(buf, s->echo + s->echo_off, n);
		if (!post(s, PNO_OP_DATA, s->tx, s->rx, buf, n))
			return did;
		if (s->todo)
			s->todo -= n;
		else
			s->echo_off += n;
		s->tx += n;
		s->taken_told = s->rx;
		room -= n;
		did = true;
	}
	if (s->echo_off == s->echo_len)
		s->echo_off = s->echo_len = 0;
	if (s->fin && !s->fin_sent && !s->todo && !s->echo_len && post(s, PNO_OP_FIN, s->tx, s->rx, NULL, 0))
		s->fin_sent = did = true;
	if (s->rx - s->taken_told >= WINDOW / 4 && post(s, PNO_OP_TX_ACK, 0, s->rx, NULL, 0)) {
		s->taken_told = s->rx;
		did = true;
	}
	return did;
}

static void on_send(struct fsock *s, const struct pno_record *r, const uint8_t *p)
{
	CHECK(r->seq == (uint32_t)s->rx);
	s->rx += r->len;
	CHECK(s->rx - s->taken_told <= WINDOW);
	if (s->port == PORT_RESET) {
		post(s, PNO_OP_ERROR, ECONNRESET, 0, NULL, 0);
		return;
	}
	if (s->port != PORT_ECHO)
		return;
	if (s->echo_len + r->len > s->echo_cap) {
		s->echo_cap = 2 * (s->echo_len + r->len);
		s->echo = realloc(s->echo, s->echo_cap);
		CHECK(s->echo);
	}
	memcpy(s->echo + s->echo_len, p, r->len);
	s->echo_len += r->len;
}

/* Answers a Bind or Connect of a datagram socket. */
static void open_dgram(struct fake_qp *q, const struct pno_record *r, struct fsock *s, struct pno_addr local, struct pno_addr peer)
{
	struct pno_dgram_info info = { .local = local, .peer = peer, .mtu = 1500 };

	if (!info.local.port)
		info.local.port = s->port ? s->port : ++f.next_port;
	if (!info.local.family)
		info.local = (struct pno_addr){ .family = 4, .port = info.local.port, .ip = { 198, 18, 0, 2 } };
	s->dgram = true;
	s->port = info.local.port;
	s->peer = peer;
	reply(q, r, 0, &info, sizeof info);
}

/* Sends a frame in as many records as it takes; one beyond the window is lost. */
static void post_dgram(struct fsock *s, const struct pno_dgram *h, const uint8_t *data)
{
	static uint8_t frame[sizeof *h + PNO_MAX_DGRAM];
	uint32_t total = sizeof *h + h->len, done = 0;

	if (s->tx - s->used_by_host + total > WINDOW)
		return;
	memcpy(frame, h, sizeof *h);
	memcpy(frame + sizeof *h, data, h->len);
	while (done < total) {
		uint32_t n = total - done < PNO_MAX_PAYLOAD ? total - done : PNO_MAX_PAYLOAD;
		struct pno_record r = {
			.op = PNO_OP_DGRAM, .len = n, .sock = s->handle, .seq = s->tx, .ack = s->rx,
			.flags = done + n < total ? PNO_FLAG_PART : 0,
		};

		if (!fake_put(&f.qp[s->home][s->shard], r, frame + done)) {
			CHECK(!done);
			return; /* the ring is full: lost, too */
		}
		s->tx += n;
		done += n;
	}
	s->taken_told = s->rx;
	fake_publish(&f.qp[s->home][s->shard]);
}

/* A datagram: back where it came from, unless the port says otherwise. */
static void on_dgram(struct fsock *s, const struct pno_record *r, const uint8_t *p)
{
	struct pno_dgram h;
	struct pno_addr to;

	CHECK(s->dgram && r->seq == (uint32_t)s->rx);
	s->rx += r->len;
	CHECK(s->rx - s->taken_told <= WINDOW);
	s->echo = realloc(s->echo, s->echo_len + r->len);
	CHECK(s->echo);
	memcpy(s->echo + s->echo_len, p, r->len);
	s->echo_len += r->len;
	if (r->flags & PNO_FLAG_PART)
		return;
	memcpy(&h, s->echo, sizeof h);
	CHECK(s->echo_len == sizeof h + h.len);
	to = h.peer.family ? h.peer : s->peer;
	h.peer = to;
	h.local = (struct pno_addr){ .family = 4, .port = s->port, .ip = { 198, 18, 0, 2 } };
	h.ttl = 64;
	h.index = 2;
	switch (to.port) {
	case PORT_REFUSED:
		post(s, PNO_OP_ERROR, ECONNREFUSED, 0, NULL, 0);
		break;
	case PORT_RESET: /* says more than it is */
		h.len += 100;
		post(s, PNO_OP_DGRAM, s->tx, s->rx, &h, sizeof h);
		break;
	case PORT_ECHO:
		post_dgram(s, &h, s->echo + sizeof h);
		break;
	}
	s->echo_len = 0;
	if (s->rx - s->taken_told >= WINDOW / 4 && post(s, PNO_OP_TX_ACK, 0, s->rx, NULL, 0))
		s->taken_told = s->rx;
}

static void on_connect(struct fake_qp *q, unsigned shard, int channel, const struct pno_record *r, const uint8_t *p)
{
	struct fsock *s = sock_of(shard, r->sock);
	struct pno_connect_req req;
	struct pno_addr_pair pair;

	memcpy(&req, p, sizeof req);
	if (!s)
		s = sock_add(shard, r->sock, channel);
	s->home = channel;
	if (req.proto == PNO_PROTO_UDP) {
		open_dgram(q, r, s, req.local, req.peer);
		return;
	}
	s->port = req.peer.port;
	if (s->port == PORT_REFUSED) {
		post(s, PNO_OP_ERROR, ECONNREFUSED, 0, NULL, 0);
		return;
	}
	pair.local = req.peer;
	pair.local.port = ++f.next_port;
	pair.peer = req.peer;
	CHECK(post(s, PNO_OP_CONNECTED, 0, 0, &pair, sizeof pair));
	if (s->port == PORT_CHARGEN) {
		s->todo = CHARGEN_BYTES;
		s->fin = true;
	}
}

static void drop(struct fsock *s)
{
	free(s->echo);
	memset(s, 0, sizeof *s);
}

static void execute(int channel, unsigned shard, const struct pno_record *r, const uint8_t *p)
{
	struct fake_qp *q = &f.qp[channel][shard];
	struct fsock *s = sock_of(shard, r->sock);
	struct pno_bind_req bind;

	switch (r->op) {
	case PNO_OP_BIND:
		CHECK(!s);
		memcpy(&bind, p, sizeof bind);
		if (bind.proto == PNO_PROTO_UDP) {
			open_dgram(q, r, sock_add(shard, r->sock, channel), bind.local, (struct pno_addr){ 0 });
			return;
		}
		if (!bind.local.port)
			bind.local.port = ++f.next_port;
		sock_add(shard, r->sock, channel)->port = bind.local.port;
		reply(q, r, 0, &bind.local, sizeof bind.local);
		return;
	case PNO_OP_CONNECT:
		on_connect(q, shard, channel, r, p);
		return;
	case PNO_OP_FORK:
		reply(q, r, 0, NULL, 0);
		return;
	}
	if (!s)
		return;
	switch (r->op) {
	case PNO_OP_LISTEN:
		s->listening = true;
		reply(q, r, 0, NULL, 0);
		return;
	case PNO_OP_SUBSCRIBE:
		s->subscribed[channel] = true;
		return;
	case PNO_OP_UNSUBSCRIBE:
		s->subscribed[channel] = false;
		reply(q, r, 0, NULL, 0);
		return;
	case PNO_OP_SET_OPT:
		if (r->seq)
			reply(q, r, EOPNOTSUPP, NULL, 0);
		return;
	case PNO_OP_SEND:
		on_send(s, r, p);
		break;
	case PNO_OP_SEND_DGRAM:
		on_dgram(s, r, p);
		break;
	case PNO_OP_SHUTDOWN:
		CHECK(r->seq == (uint32_t)s->rx);
		s->fin |= r->flags != 0;
		break;
	case PNO_OP_CLOSE:
		CHECK(s->listening || r->seq == (uint32_t)s->rx);
		drop(s);
		return;
	case PNO_OP_CLAIM:
		s->home = channel;
		CHECK(post(s, PNO_OP_CLAIMED, s->tx, s->rx, NULL, 0));
		s->taken_told = s->rx;
		return;
	}
	if (r->op == PNO_OP_SEND || r->op == PNO_OP_SEND_DGRAM || r->op == PNO_OP_RX_ACK) {
		uint32_t more = r->ack - (uint32_t)s->used_by_host;

		CHECK(more <= s->tx - s->used_by_host);
		s->used_by_host += more;
	}
}

static bool turn(void)
{
	struct pno_record r;
	uint8_t *p;
	bool did = false;

	for (unsigned c = 0; c < f.channels; c++)
		for (unsigned i = 0; i < f.shards; i++) {
			while (fake_next(&f.qp[c][i], &r, &p)) {
				execute(c, i, &r, p);
				did = true;
			}
			fake_release(&f.qp[c][i]);
			fake_publish(&f.qp[c][i]);
		}
	for (int i = 0; i < SOCKS; i++)
		if (f.sock[i].used && !f.sock[i].listening && !f.sock[i].dgram)
			did |= serve(&f.sock[i]);
	return did;
}

static void *dpu_main(void *arg)
{
	struct pollfd fds[PNO_MAX_SHARDS];
	uint64_t n;

	(void)arg;
	while (!__atomic_load_n(&f.stop, __ATOMIC_ACQUIRE)) {
		bool idle;

		pthread_mutex_lock(&f.lock);
		idle = !turn();
		for (unsigned c = 0; c < f.channels; c++)
			for (unsigned i = 0; i < f.shards; i++)
				idle &= fake_arm(&f.qp[c][i]);
		pthread_mutex_unlock(&f.lock);
		if (!idle)
			continue;
		for (unsigned i = 0; i < f.shards; i++)
			fds[i] = (struct pollfd){ f.doorbell[i], POLLIN, 0 };
		/* Ring space comes back without a doorbell: look now and then. */
		if (real.poll(fds, f.shards, 2) > 0)
			for (unsigned i = 0; i < f.shards; i++)
				if (fds[i].revents)
					CHECK(real.read(f.doorbell[i], &n, sizeof n) == sizeof n);
	}
	return NULL;
}

static void channel_make(unsigned c)
{
	uint64_t ctl = (f.shards * 256 + 4095) & ~4095ull;
	uint8_t *base = f.mem + PNO_CHANNELS_OFF + c * f.stride;

	for (unsigned i = 0; i < f.shards; i++) {
		struct fake_qp *q = &f.qp[c][i];

		memset(q, 0, sizeof *q);
		q->host = (void *)(base + i * 256);
		q->dev = (void *)(base + i * 256 + 128);
		q->h2d = base + ctl + i * 2ull * f.ring;
		q->d2h = q->h2d + f.ring;
		q->h2d_size = q->d2h_size = f.ring;
		q->doorbell = f.doorbell[i];
		q->irq = c || i ? f.qp[c][0].irq : eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		if (c && !i)
			q->irq = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	}
	f.channels = c + 1;
}

static void answer(int conn, const struct pno_msg *req, void *msg, uint16_t type, size_t len, const int *fd, int n)
{
	char control[CMSG_SPACE(sizeof(int) * 20)] = { 0 };
	struct iovec v = { msg, len };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1 };

	*(struct pno_msg *)msg = (struct pno_msg){ PNO_ATTACH_MAGIC, PNO_ATTACH_VERSION, type, len, req->id };
	if (n) {
		struct cmsghdr *c;

		m.msg_control = control;
		m.msg_controllen = CMSG_SPACE(sizeof(int) * n);
		c = CMSG_FIRSTHDR(&m);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int) * n);
		memcpy(CMSG_DATA(c), fd, sizeof(int) * n);
	}
	CHECK(real.sendmsg(conn, &m, 0) == (ssize_t)len);
}

static void welcome(int conn, const struct pno_msg *req)
{
	struct pno_msg_welcome *w = calloc(1, sizeof *w);
	struct pno_session_header *h = (void *)f.mem;
	int fd[PNO_MAX_SHARDS + 2], n = 0;

	h->status = PNO_STATUS_UP;
	w->session = 1;
	w->features = PNO_FEATURE_UDP;
	w->total_size = f.total;
	w->channel_stride = f.stride;
	w->h2d_size = w->d2h_size = f.ring;
	w->channels = 8;
	w->shards = f.shards;
	w->rx_window = w->tx_window = WINDOW < f.ring / 2 ? WINDOW : f.ring / 2;
	w->spin_nanos = 5000;
	w->default_action = PNO_ACTION_OFFLOAD;
	fd[n++] = f.memfd;
	for (unsigned i = 0; i < f.shards; i++)
		fd[n++] = f.doorbell[i];
	fd[n++] = f.qp[0][0].irq;
	answer(conn, req, w, PNO_MSG_WELCOME, sizeof *w, fd, n);
	free(w);
}

/* Fresh memory, as for a new session; the old one stays mapped. */
static void session_make(void)
{
	f.memfd = memfd_create("session", MFD_CLOEXEC);
	CHECK(f.memfd >= 0 && ftruncate(f.memfd, f.total) == 0);
	f.mem = mmap(NULL, f.total, PROT_READ | PROT_WRITE, MAP_SHARED, f.memfd, 0);
	CHECK(f.mem != MAP_FAILED);
	for (int i = 0; i < SOCKS; i++)
		drop(&f.sock[i]);
	channel_make(0);
}

static void serve_shim(int conn)
{
	union {
		struct pno_msg h;
		struct pno_msg_channel_open open;
		char room[8192];
	} req;
	struct pno_msg_ack ack = { 0 };
	struct pno_msg_channel ch = { 0 };
	struct pno_msg_refused refused = { 0 };
	bool again = false;

	while (real.recv(conn, &req, sizeof req, 0) > 0) {
		switch (req.h.type) {
		case PNO_MSG_HELLO:
			CHECK(!again);
			again = true;
			pthread_mutex_lock(&f.lock);
			if (f.sessions++)
				session_make();
			welcome(conn, &req.h);
			pthread_mutex_unlock(&f.lock);
			break;
		case PNO_MSG_CHANNEL_OPEN:
			pthread_mutex_lock(&f.lock);
			channel_make(req.open.channel);
			pthread_mutex_unlock(&f.lock);
			answer(conn, &req.h, &ch, PNO_MSG_CHANNEL, sizeof ch, &f.qp[req.open.channel][0].irq, 1);
			break;
		case PNO_MSG_FORKED:
			break;
		case PNO_MSG_LOOKUP_SOCKET:
			refused.err = ENOENT;
			answer(conn, &req.h, &refused, PNO_MSG_REFUSED, sizeof refused, NULL, 0);
			break;
		default:
			answer(conn, &req.h, &ack, PNO_MSG_ACK, sizeof ack, NULL, 0);
		}
	}
	real.close(conn);
}

static void *hostd_main(void *arg)
{
	int conn;

	while ((conn = real.accept(f.listener, NULL, NULL)) >= 0)
		serve_shim(conn);
	return arg;
}

void fake_start(unsigned shards, uint32_t ring_size)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };

	pno_start();
	f.shards = shards;
	f.ring = ring_size;
	f.stride = ((shards * 256 + 4095) & ~4095ull) + shards * 2ull * ring_size;
	f.total = PNO_CHANNELS_OFF + 8 * f.stride;
	for (unsigned i = 0; i < shards; i++)
		f.doorbell[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	session_make();
	snprintf(f.path, sizeof f.path, "/tmp/pno-shim-test-%d.sock", (int)getpid());
	strcpy(sa.sun_path, f.path);
	f.listener = real.socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	CHECK(real.bind(f.listener, (struct sockaddr *)&sa, sizeof sa) == 0);
	CHECK(real.listen(f.listener, 4) == 0);
	CHECK(setenv("PNO_HOSTD", f.path, 1) == 0);
	pno_hostd_start(); /* the constructor read it too early for us */
	CHECK(!pthread_create(&f.hostd, NULL, hostd_main, NULL));
	CHECK(!pthread_create(&f.dpu, NULL, dpu_main, NULL));
}

void fake_stop(void)
{
	__atomic_store_n(&f.stop, 1, __ATOMIC_RELEASE);
	pthread_join(f.dpu, NULL);
	unlink(f.path);
	for (int i = 0; i < SOCKS; i++)
		free(f.sock[i].echo);
}

void fake_dial_on(unsigned shard, uint16_t port)
{
	pthread_mutex_lock(&f.lock);
	turn(); /* the subscription may be under way */
	for (int i = 0; i < SOCKS; i++) {
		struct fsock *l = &f.sock[i], *s;
		struct pno_addr_pair pair = {
			.local = { .family = 4, .port = port, .ip = { 198, 18, 0, 2 } },
			.peer = { .family = 4, .port = ++f.next_port, .ip = { 198, 18, 0, 1 } },
		};
		int c = 0;

		if (!l->used || !l->listening || l->port != port || l->shard != shard)
			continue;
		while (c < (int)f.channels && !l->subscribed[c])
			c++;
		CHECK(c < (int)f.channels);
		s = sock_add(l->shard, ++f.next_handle, c);
		s->port = PORT_ECHO;
		s->mine = true;
		CHECK(post(s, PNO_OP_ACCEPT, l->handle, 0, &pair, sizeof pair));
		/* The first bytes may come with it. */
		CHECK(post(s, PNO_OP_DATA, 0, 0, "hello", 5));
		s->tx = 5;
		break;
	}
	pthread_mutex_unlock(&f.lock);
}

void fake_dial(uint16_t port)
{
	fake_dial_on(0, port);
}

int fake_connect(uint16_t port)
{
	struct sockaddr_in sa = { .sin_family = AF_INET, .sin_port = htons(port) };
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	inet_pton(AF_INET, "198.18.0.1", &sa.sin_addr);
	CHECK(fd >= 0 && connect(fd, (struct sockaddr *)&sa, sizeof sa) == 0);
	return fd;
}

void fake_violate(void)
{
	pthread_mutex_lock(&f.lock);
	for (unsigned c = 0; c < f.channels; c++) {
		CHECK(fake_put(&f.qp[c][0], (struct pno_record){ .op = 200, .sock = 1 }, NULL));
		fake_publish(&f.qp[c][0]);
	}
	pthread_mutex_unlock(&f.lock);
}

void fake_lose(void)
{
	struct pno_session_header *h;
	uint64_t one = 1;

	pthread_mutex_lock(&f.lock);
	h = (void *)f.mem;
	pno_store32(&h->status, PNO_STATUS_DPU_LOST);
	for (unsigned c = 0; c < f.channels; c++)
		CHECK(real.write(f.qp[c][0].irq, &one, sizeof one) == sizeof one);
	pthread_mutex_unlock(&f.lock);
}
