// SPDX-License-Identifier: Apache-2.0

// Package topology brings a whole simulated machine up in this process: a DPU
// on one end of a virtual wire, the edge on the other, and the host agent that
// programs under the shim attach to. It needs no privilege, uses nothing of
// the machine but Unix sockets in a directory of its own and the loopback
// ports that are published, and so any number can run at once.
//
//	program + libpno.so ── hostd ── dpud ── wire ── edge ── loopback clients
//	                       \______ in this process ______/
//
// Start returns a Sim that belongs to the caller; its methods may be called by
// any goroutine. Stop may be called once, after which Report still answers
// with the final numbers.
package topology
