// SPDX-License-Identifier: Apache-2.0

package admin

import (
	dpureport "pno/dpu/report"
	"pno/host/policy"
	hostreport "pno/host/report"
	adminv1 "pno/proto/pno/admin/v1"
)

// DPU is what a dpud tells about itself. Any goroutine may call any method at
// any time; the caller may keep and change what it is given. A DPU that is
// closing answers with what it last knew.
type DPU interface {
	Stats() dpureport.Stats
	Sessions() []dpureport.Session
	Sockets() []dpureport.Socket
	Rings() []dpureport.Ring
	Health() dpureport.Health
}

// Host is what a hostd tells about itself, under the rules of DPU.
type Host interface {
	Report() hostreport.Host
	// Policy is the one in force for processes that attach now.
	Policy() *policy.Policy
}

// backend is what AdminService and the collector need of either daemon. The
// messages it returns are the caller's.
type backend interface {
	// status fills in what only this daemon knows; identify adds the rest.
	status() *adminv1.Status
	stats() *adminv1.Stats
	sessions() []*adminv1.Session
	// serving tells whether applications are served, for the health service.
	serving() bool
}
