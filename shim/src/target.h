/* SPDX-License-Identifier: Apache-2.0 */

/* Programs that the shim will not be in. */
#ifndef PNO_TARGET_H
#define PNO_TARGET_H

/*
 * Called before exec, also in the child of vfork: looks at the file, and if
 * nothing can be preloaded into it, lets hostd count it, and says so on
 * standard error if hostd has not heard of this program before. Keeps errno.
 */
void pno_target_tell(const char *path);
/* The same for a name that is looked for in PATH. */
void pno_target_tell_search(const char *file);

#endif
