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

var known = []difference{}
