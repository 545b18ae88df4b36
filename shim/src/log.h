/* SPDX-License-Identifier: Apache-2.0 */

/*
 * PNO_LOG=level or level:file, level one of error (the default), info, debug.
 * Without a file, messages go to standard error; each distinct error is said
 * once a process.
 */
#ifndef PNO_LOG_H
#define PNO_LOG_H

#include <stdbool.h>

enum pno_level { PNO_ERROR, PNO_INFO, PNO_DEBUG };

extern enum pno_level pno_log_level;

void pno_log_start(void);
void pno_log(enum pno_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* An error that would repeat: said the first time only. */
#define pno_log_once(...)                               \
	do {                                            \
		static bool said;                       \
		if (!said) {                            \
			said = true;                    \
			pno_log(PNO_ERROR, __VA_ARGS__); \
		}                                       \
	} while (0)

#define pno_debug(...)                                    \
	do {                                              \
		if (unlikely(pno_log_level >= PNO_DEBUG)) \
			pno_log(PNO_DEBUG, __VA_ARGS__);  \
	} while (0)

#endif
