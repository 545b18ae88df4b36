// SPDX-License-Identifier: Apache-2.0

// Package bench measures a proxy over kernel sockets and over the offload, in
// turn, on one machine and in one run.
//
// A benchmark owns its namespaces and processes from Setup to Close and is
// driven by one goroutine. CPU time is the measure, not requests per second:
// on a small machine the load generator, the DPU and the proxy share the
// cores, so both sides are compared at the same offered rate.
//
// Handshakes and CryptoRPC measure the crypto cluster in the same way: HAProxy
// with its keys at hand and with its keys in the cluster, in turn, and the way to
// a worker alone.
//
// Shards measures the DPU alone, two shards against one, under the load of
// package lane, which costs next to nothing and is not counted. Each shard stays
// on a core with its load. The control is two processes of one shard each.
//
// Placement: the proxy and hostd run on core 0, the DPU and the load on core
// 1. In the kernel's case veth is left as it is: each core does the receive work
// for what it sends (kernelSite says why).
package bench
