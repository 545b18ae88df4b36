/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The descriptor table, and the shim's own descriptors in it.
 *
 * Ours sit high, so that programs that count on small numbers, or on the next
 * number being the last plus one, see nothing of them; and not too high,
 * because the kernel's table grows to the highest number in use and is copied
 * by every fork.
 */
#include "fdtable.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "log.h"
#include "quiet.h"
#include "real.h"

#define TABLE_MAX   (1u << 22)
#define OWN_CEILING 16384
#define OWN_ROOM    256

struct pno_obj **pno_fds;
unsigned pno_nfds;
atomic_uint pno_fd_top;

static struct pno_obj own = { .kind = PNO_KIND_OWN };
static int owned[OWN_ROOM];
static unsigned nowned;
static pno_lock_t owned_lock;

void pno_fdtable_start(void)
{
	struct rlimit lim;
	size_t n = TABLE_MAX;
	void *m;

	if (getrlimit(RLIMIT_NOFILE, &lim) == 0 && lim.rlim_max < n)
		n = lim.rlim_max;
	m = mmap(NULL, n * sizeof *pno_fds, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (m == MAP_FAILED) {
		pno_log(PNO_ERROR, "no memory for the descriptor table: nothing is offloaded");
		return;
	}
	pno_fds = m;
	pno_nfds = n;
}

int pno_fd_own(int fd)
{
	struct rlimit lim;
	rlim_t low = OWN_CEILING;
	int high;

	if (fd < 0)
		return -1;
	if (getrlimit(RLIMIT_NOFILE, &lim) == 0 && lim.rlim_cur < low)
		low = lim.rlim_cur;
	low = low > 2 * OWN_ROOM ? low - OWN_ROOM : low / 2;
	high = real.fcntl(fd, F_DUPFD_CLOEXEC, (int)low);
	if (high >= 0) {
		quiet_close(fd);
		fd = high;
	}
	pno_lock(&owned_lock);
	if (nowned == OWN_ROOM || !pno_fd_set(fd, &own)) {
		pno_unlock(&owned_lock);
		quiet_close(fd);
		errno = EMFILE;
		return -1;
	}
	owned[nowned++] = fd;
	pno_unlock(&owned_lock);
	return fd;
}

void pno_fd_disown(int fd)
{
	if (fd < 0)
		return;
	pno_lock(&owned_lock);
	for (unsigned i = 0; i < nowned; i++) {
		if (owned[i] == fd) {
			owned[i] = owned[--nowned];
			break;
		}
	}
	pno_fd_set(fd, NULL);
	pno_unlock(&owned_lock);
	quiet_close(fd);
}

void pno_fd_disown_all(void)
{
	atomic_store(&owned_lock.held, 0);
	while (nowned)
		pno_fd_disown(owned[nowned - 1]);
}
