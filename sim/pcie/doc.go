// SPDX-License-Identifier: Apache-2.0

// Package pcie models the PCIe link between a host and its DPU: it puts
// latency, bandwidth, a limit of operations in flight, and the cost of
// doorbells and interrupts around a zero-cost offload.Transport.
//
// A Bus is the physical link; the transports of all sessions and shards of one
// DPU share its bandwidth. A Transport belongs to its shard's goroutine, as
// package offload demands; the Bus may be used by all of them.
//
// How an operation is timed. It starts when it is posted, or when the
// operation Outstanding places before it has completed. Its bytes cross the
// link after those posted earlier in the same direction. A write is visible to
// the host, and done, WriteLatency later. A read looks at host memory half its
// latency after its bytes' turn, and is done at the whole. Writes take effect
// in the order posted, a read takes effect after every write posted before it,
// and an interrupt comes after every write posted before it. An effect happens
// in the first Poll at or after its time, never earlier.
//
// What is not modelled: completion credits, relaxed ordering, the host's IOMMU
// and caches, the bytes of read requests, and the CPU time for building
// descriptors. What real time adds to a simulation, such as the scheduling of
// the two processes, comes on top.
package pcie
