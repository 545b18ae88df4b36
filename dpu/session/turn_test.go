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

func TestOwedUntilAHostSpeaks(t *testing.T) {
	l := offload.Layout{Channels: 1, Shards: 1, H2DSize: 1 << 16, D2HSize: 1 << 16, RxWindow: 1 << 14, TxWindow: 1 << 14}
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
	defer func() { _ = unix.Munmap(mem) }()
	region, err := shm.Map(fd, l.TotalSize())
	if err != nil {
		t.Fatal(err)
	}
	defer region.Close()
	host, err := offload.NewHostQP(mem, l, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	table := NewTable(Config{
		Log:   slog.New(slog.NewTextHandler(io.Discard, nil)),
		Watch: func(int, uint64) error { return nil }, Unwatch: func(int) {},
		Ended: func(id uint64, reason string) { t.Errorf("session %d ended: %s", id, reason) },
	})
	if err := table.Open(1, l, region.NewTransport(-1), offload.Process{}); err != nil {
		t.Fatal(err)
	}
	defer table.CloseAll()
	if err := table.OpenChannel(1, 0); err != nil {
		t.Fatal(err)
	}
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
}
