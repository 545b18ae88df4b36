// SPDX-License-Identifier: Apache-2.0

// Package admin lets people and monitoring look into a running daemon: the gRPC
// services of pno.admin.v1 with the standard health service, on a Unix socket,
// and the same numbers as Prometheus metrics over HTTP.
//
// The package only reads. What a daemon tells about itself comes through the
// DPU or Host interface, as plain values of dpu/report and host/report; this
// package turns them into messages, pages, filters and metric families. Each
// daemon has a registry of its own; nothing is registered globally, so that a
// process may hold several daemons.
//
// ServeDPU and ServeHost own the socket file, the listeners and every goroutine
// they start, and return after all of them have ended. The source belongs to
// the caller; it is called from several goroutines at once.
package admin
