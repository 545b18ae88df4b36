// SPDX-License-Identifier: Apache-2.0

// Package adminv1 is the administration API of dpud and hostd: what offloadctl
// speaks. Both serve AdminService, dpud DpuService, hostd HostService; the
// standard health service stands beside them.
//
// The *.pb.go files are generated from the .proto files (make gen). A message
// belongs to whoever holds it; a client may be used by any goroutine.
package adminv1
