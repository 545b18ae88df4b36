// SPDX-License-Identifier: Apache-2.0

// Package policy decides which sockets are offloaded. A Policy is read from a
// strict YAML file, is immutable from then on, and may be used by any
// goroutine.
//
// A decision has this order: loopback addresses stay in the kernel unless
// offload_loopback is set; then the first rule that matches; then the default
// action. The decision is taken in the process, by the shim, from the array
// that Compile makes for the process's name; Explain takes the same decision
// from the same array, so that what offloadctl says is what happens.
package policy
