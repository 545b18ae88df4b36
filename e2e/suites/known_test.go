// SPDX-License-Identifier: Apache-2.0

package suites

// known are the cases that pass on kernel sockets and not on the DPU, each with
// its reason. docs/compat.notes.md explains them to users.
var known = []struct{ pattern, why string }{
	{"test.test_ftplib.*.test_abort", "MSG_OOB: urgent data is not offloaded"},
}
