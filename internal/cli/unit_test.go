// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"math"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pno/internal/admin"
	"pno/internal/admin/admintest"
	adminv1 "pno/proto/pno/admin/v1"
)

func TestStatusTable(t *testing.T) {
	d := daemons{
		dpu: &daemon{name: "dpud", status: &adminv1.Status{
			Role: adminv1.Role_ROLE_DPU, Version: "v1.2.3", Protocol: "1.0", Pid: 812, StartTime: timestamppb.New(admintest.Start),
			PeerConnected: true, Sessions: 2, Shards: 2, Platform: "linux/arm64", GoVersion: "go1.26.8",
			Cpu: &adminv1.Cpu{Model: "Cortex-A78AE", Count: 16, Features: []string{"aes", "sha2"}},
		}},
		host: &daemon{name: "hostd", status: &adminv1.Status{
			Role: adminv1.Role_ROLE_HOST, Version: "v1.2.3", Protocol: "1.0", Pid: 40123, Sessions: 1200,
			Problems: []string{"the link to the DPU is down: connect: connection refused"}, Platform: "linux/amd64", GoVersion: "go1.26.8",
		}},
	}
	for _, form := range []string{formatTable, formatWide} {
		var out bytes.Buffer
		a := &App{Stdout: &out, Now: func() time.Time { return admintest.Now }, output: form}
		if err := a.writeStatus(d); err != nil {
			t.Fatal(err)
		}
		golden(t, "status_"+form+".txt", out.String())
	}
}

func TestDelta(t *testing.T) {
	start := timestamppb.New(admintest.Start)
	before := &adminv1.Stats{StartTime: start, Dpu: &adminv1.DpuStats{
		BytesTx:  100,
		Sessions: &adminv1.DpuSessionStats{Active: 5, Opened: 7, ClosedByReason: map[string]uint64{"a": 2}},
		Channel:  &adminv1.ChannelStats{DmaReads: 10, DmaWrites: 9},
		Netstack: []*adminv1.Counter{{Name: "x", Value: 4}, {Name: "g", Value: 8, Gauge: true}},
		Process:  &adminv1.ProcessStats{CpuUser: durationpb.New(time.Second), HeapBytes: 50},
	}}
	now := proto.Clone(before).(*adminv1.Stats)
	now.Dpu.BytesTx = 150
	now.Dpu.Sessions.Active, now.Dpu.Sessions.Opened = 3, 9
	now.Dpu.Sessions.ClosedByReason = map[string]uint64{"a": 5, "new": 1}
	now.Dpu.Channel.DmaReads, now.Dpu.Channel.DmaWrites = 30, 2 // went back
	now.Dpu.Netstack = []*adminv1.Counter{{Name: "g", Value: 6, Gauge: true}, {Name: "new", Value: 1}, {Name: "x", Value: 9}}
	now.Dpu.Process = &adminv1.ProcessStats{CpuUser: durationpb.New(1500 * time.Millisecond), HeapBytes: 60}

	want := &adminv1.Stats{StartTime: start, Dpu: &adminv1.DpuStats{
		BytesTx:  50,
		Sessions: &adminv1.DpuSessionStats{Active: 3, Opened: 2, ClosedByReason: map[string]uint64{"a": 3, "new": 1}},
		Channel:  &adminv1.ChannelStats{DmaReads: 20, DmaWrites: 2},
		Netstack: []*adminv1.Counter{{Name: "g", Value: 6, Gauge: true}, {Name: "new", Value: 1}, {Name: "x", Value: 5}},
		Process:  &adminv1.ProcessStats{CpuUser: durationpb.New(500 * time.Millisecond), HeapBytes: 60},
	}}
	if got := delta(now, before); !proto.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if now.GetDpu().GetBytesTx() != 150 {
		t.Error("the sample itself was changed")
	}
	restarted := proto.Clone(now).(*adminv1.Stats)
	restarted.StartTime = timestamppb.New(admintest.Now)
	if got := delta(restarted, before); !proto.Equal(got, restarted) {
		t.Errorf("after a restart: %v", got)
	}
}

func TestPingIsAllowed(t *testing.T) {
	if pingInterval < admin.MinPing {
		t.Errorf("a ping each %v, the daemons allow one each %v", pingInterval, admin.MinPing)
	}
}

func TestNumbers(t *testing.T) {
	for n, want := range map[uint64]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567", math.MaxUint64: "18,446,744,073,709,551,615"} {
		if got := number(n); got != want {
			t.Errorf("number(%d) = %s, want %s", n, got, want)
		}
	}
	for n, want := range map[uint64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 1<<20 - 1: "1.0 MiB", 1 << 40: "1.0 TiB", math.MaxUint64: "16.0 EiB",
	} {
		if got := bytesize(n); got != want {
			t.Errorf("bytesize(%d) = %s, want %s", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{
		0: "0s", 59 * time.Second: "59s", 61 * time.Second: "1m01s", 90 * time.Minute: "1h30m", 49 * time.Hour: "2d01h",
	} {
		if got := age(d); got != want {
			t.Errorf("age(%v) = %s, want %s", d, got, want)
		}
	}
}
