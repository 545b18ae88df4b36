// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"os"
	"runtime"
	"runtime/metrics"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/durationpb"

	"pno/internal/buildinfo"
	"pno/internal/cpufeat"
	adminv1 "pno/proto/pno/admin/v1"
)

// identify adds to a status what is the same for either daemon: the program
// and the machine.
func identify(s *adminv1.Status) *adminv1.Status {
	if s.Version == "" {
		s.Version = buildinfo.Version()
	}
	s.GoVersion = runtime.Version()
	s.Platform = runtime.GOOS + "/" + runtime.GOARCH
	s.Pid = int64(os.Getpid())
	f := cpufeat.Detect()
	s.Cpu = &adminv1.Cpu{Model: f.Model, Count: uint32(runtime.NumCPU()), Features: f.Names}
	return s
}

// processStats asks the kernel and the runtime what this process takes.
func processStats() *adminv1.ProcessStats {
	samples := []metrics.Sample{
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/total:bytes"},
		{Name: "/sched/goroutines:goroutines"},
		{Name: "/gc/cycles/total:gc-cycles"},
	}
	metrics.Read(samples)
	s := &adminv1.ProcessStats{
		HeapBytes:  samples[0].Value.Uint64(),
		SysBytes:   samples[1].Value.Uint64(),
		Goroutines: samples[2].Value.Uint64(),
		Gcs:        samples[3].Value.Uint64(),
	}
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) == nil {
		s.CpuUser = durationpb.New(time.Duration(u.Utime.Nano()))
		s.CpuSystem = durationpb.New(time.Duration(u.Stime.Nano()))
	}
	return s
}
