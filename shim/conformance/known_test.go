// SPDX-License-Identifier: Apache-2.0

package conformance

// difference is a line of a transcript in which an offloaded socket is known
// to answer otherwise than the kernel's, and why. An entry that no longer
// applies fails the suite.
type difference struct {
	topic, section  string
	kernel, offload string
	why             string
}

var known = []difference{
	{
		"oob", "urgent data",
		`send(c, "ab!", 3, MSG_OOB) = 3`, `send(c, "ab!", 3, MSG_OOB) = -1 EOPNOTSUPP`,
		"netstack has no urgent data; refusing is better than sending it as ordinary bytes",
	},
	{
		"oob", "urgent data",
		`recv(s, b, 1, MSG_OOB | MSG_DONTWAIT) = 1`, `recv(s, b, 1, MSG_OOB | MSG_DONTWAIT) = -1 EINVAL`,
		"the same, on the receiving side: none has come",
	},
}
