/* SPDX-License-Identifier: Apache-2.0 */

/* The rules that hostd gave this process: the first that matches decides. */
#ifndef PNO_POLICY_H
#define PNO_POLICY_H

#include "session.h"

/* op is PNO_RULE_LISTEN or PNO_RULE_CONNECT; the answer a PNO_ACTION_…. */
int pno_policy(const struct pno_session *ses, int op, int proto, const struct pno_addr *a);

#endif
