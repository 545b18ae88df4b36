// SPDX-License-Identifier: Apache-2.0

// Package e2e holds the end-to-end suite: stock nginx, HAProxy and redis behind
// a DPU in network namespaces, spoken to over a wire by stock clients.
//
// Each test builds its own lab (lab_test.go): a client, a back end, a switch,
// the DPU and a host that has nothing but a loopback. The same scenarios run in
// two modes. -mode=offload (the default) is the product: the host reaches
// nobody but through the shim and the DPU. -mode=kernel is the control run: the
// host is plugged into the switch in the DPU's place and there is no shim, so
// that a scenario which fails there is wrong itself.
//
// The suite runs as a child of itself (main_test.go). The parent ends and
// removes whatever the child leaves behind, also after a timeout or a crash,
// and fails if there was anything. -keep leaves the files for inspection.
//
// Nothing here runs in parallel: the scenarios compete for the machine enough.
package e2e
