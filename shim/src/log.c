/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Messages. One write(2) a line, so that lines of several processes do not
 * mix; errno is kept, so that a message may stand anywhere.
 */
#include "log.h"
#include "quiet.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "real.h"

enum pno_level pno_log_level = PNO_ERROR;
static char file[256];

void pno_log_start(void)
{
	const char *v = getenv("PNO_LOG");
	const char *path;

	if (!v)
		return;
	if (!strncmp(v, "debug", 5))
		pno_log_level = PNO_DEBUG;
	else if (!strncmp(v, "info", 4))
		pno_log_level = PNO_INFO;
	path = strchr(v, ':');
	if (path && strlen(path + 1) < sizeof file)
		strcpy(file, path + 1);
}

void pno_log(enum pno_level level, const char *format, ...)
{
	char line[512];
	int saved = errno;
	int n, m, fd = STDERR_FILENO;
	va_list args;

	if (level > pno_log_level)
		return;
	n = snprintf(line, sizeof line, "libpno[%d]: ", (int)getpid());
	va_start(args, format);
	m = vsnprintf(line + n, sizeof line - n - 1, format, args);
	va_end(args);
	n += m < (int)sizeof line - n - 1 ? m : (int)sizeof line - n - 2;
	line[n++] = '\n';
	/* Opened each time: a descriptor kept open would be one more that
	 * the program could close under us. */
	if (file[0])
		fd = quiet_open(file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
	if (fd >= 0 && quiet_write(fd, line, n) < 0)
		n = 0;
	if (file[0] && fd >= 0)
		quiet_close(fd);
	errno = saved;
}
