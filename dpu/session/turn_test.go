// SPDX-License-Identifier: Apache-2.0

package session

import (
	"io"
	"log/slog"
	"testing"

	"golang.org/x/sys/unix"

	"pno/offload"
	"pno/offload/shm"
)

// served is a table with one session, of the id 1, and the host's ends of its
// channels.
func served(t *testing.T, channels int) (*Table, []*offload.HostQP) {
	t.Helper()
	l := offload.Layout{Channels: channels, Shards: 1, H2DSize: 1 << 16, D2HSize: 1 << 16, RxWindow: 1 << 14, TxWindow: 1 << 14}
	fd, err := unix.MemfdCreate("session", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, int64(l.TotalSize())); err != nil {
		t.Fatal(err)
	}
	mem, err := unix.Mmap(fd, 0, int(l.TotalSize()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(mem) })
	region, err := shm.Map(fd, l.TotalSize())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = region.Close() })
	table := NewTable(Config{
		Log:   slog.New(slog.NewTextHandler(io.Discard, nil)),
		Watch: func(int, uint64) error { return nil }, Unwatch: func(int) {},
		Ended: func(id uint64, reason string) { t.Errorf("session %d ended: %s", id, reason) },
	})
	if err := table.Open(1, l, region.NewTransport(-1), offload.Process{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(table.CloseAll)
	hosts := make([]*offload.HostQP, channels)
	for i := range hosts {
		if hosts[i], err = offload.NewHostQP(mem, l, i, 0); err != nil {
			t.Fatal(err)
		}
		if err := table.OpenChannel(1, i); err != nil {
			t.Fatal(err)
		}
	}
	return table, hosts
}

func TestHostsThatOweAndSpeak(t *testing.T) {
	table, hosts := served(t, 1)
	host := hosts[0]
	now := int64(0)
	say := func(op offload.Op) bool {
		host.Emit(op, 0, offload.HandleHost|7, 1, 0, 0) // a handle that is not known
		host.Publish()
		now += 1000
		if !table.Turn(now) {
			t.Fatalf("record %d was not executed", op)
		}
		table.Flush(now)
		return table.Owed()
	}
	if table.Owed() {
		t.Error("something is owed for nothing")
	}
	if !say(offload.OpGetOpt) {
		t.Error("after a reply nothing is owed")
	}
	if say(offload.OpRxAck) {
		t.Error("what the host has said is still owed")
	}
	if want := uint64(2 * offload.RecordHdr); table.Heard() != want {
		t.Errorf("%d bytes heard, want %d", table.Heard(), want)
	}
	look := func() bool {
		now += 1000
		table.Turn(now)
		table.Flush(now)
		return table.Speaking()
	}
	if look() {
		t.Error("a host that has answered everything may go on")
	}
	q := table.hot[0]
	q.asked = 2
	if !look() {
		t.Error("a host with two answers to give cannot go on")
	}
	say(offload.OpRxAck)
	if !table.Speaking() {
		t.Error("a host with another answer to give cannot go on")
	}
	say(offload.OpRxAck)
	if table.Speaking() {
		t.Error("a host that has given both answers may go on")
	}
	q.asked = 3
	for {
		if _, _, ok, err := host.Next(); err != nil {
			t.Fatal(err)
		} else if !ok {
			break
		}
	}
	host.Release()
	if !host.Arm() {
		t.Fatal("the host has to look again")
	}
	if look() {
		t.Error("a host that sleeps may go on")
	}
	host.Disarm()
	if look() {
		t.Error("a host that slept without answering may still be about to")
	}
	q.asked = 1
	if !look() {
		t.Error("a host that has woken up cannot go on")
	}
}
