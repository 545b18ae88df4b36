// SPDX-License-Identifier: Apache-2.0

package pcie

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pno/offload"
	"pno/offload/shm"
)

// patience bounds every sleep: a wake-up that has not come by then is lost.
const patience = 20 * time.Second

// TestRingAcrossTheLink sends records to a DPU that echoes them, in every
// profile, with both sides going to sleep whenever they find nothing: nothing
// may be lost, changed or reordered, and no wake-up may be missed.
func TestRingAcrossTheLink(t *testing.T) {
	slow := Profile{
		Name: "slow", ReadLatency: 300 * time.Microsecond, WriteLatency: 200 * time.Microsecond,
		ReadBandwidth: 200e6, WriteBandwidth: 200e6, Outstanding: 4, InterruptLatency: 50 * time.Microsecond,
	}
	for _, p := range append([]Profile{slow}, Profiles...) {
		t.Run(p.Name, func(t *testing.T) {
			r := newRig(t, NewBus(p))
			stop, done := make(chan struct{}), make(chan error, 1)
			go func() { done <- r.echo(stop) }()
			err := r.drive(2000)
			close(stop)
			r.ring() // in case it sleeps
			if derr := <-done; err == nil {
				err = derr
			}
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}

type rig struct {
	host                *offload.HostQP
	dev                 *offload.DevQP
	link                *Transport
	doorbell, interrupt int
}

func newRig(t *testing.T, bus *Bus) *rig {
	t.Helper()
	l := offload.Layout{
		Channels: 1, Shards: 1, H2DSize: offload.MinRingSize, D2HSize: offload.MinRingSize,
		RxWindow: offload.MaxPayload, TxWindow: offload.MaxPayload,
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(l.Check())
	memfd, err := unix.MemfdCreate("session", unix.MFD_CLOEXEC)
	must(err)
	t.Cleanup(func() { _ = unix.Close(memfd) })
	must(unix.Ftruncate(memfd, int64(l.TotalSize())))
	mem, err := unix.Mmap(memfd, 0, int(l.TotalSize()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(err)
	t.Cleanup(func() { _ = unix.Munmap(mem) })
	event := func() int {
		fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
		must(err)
		return fd
	}
	dup := func(fd int) int {
		fd, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		must(err)
		t.Cleanup(func() { _ = unix.Close(fd) })
		return fd
	}
	r := &rig{doorbell: event(), interrupt: event()}
	region, err := shm.Map(memfd, l.TotalSize())
	must(err)
	mine := dup(r.interrupt)
	must(region.OpenChannel(0, r.interrupt))
	r.interrupt = mine
	inner := region.NewTransport(r.doorbell)
	r.doorbell = dup(r.doorbell)
	r.link = bus.Wrap(inner, l.TotalSize())
	t.Cleanup(func() {
		_ = r.link.Close()
		_ = region.Close()
	})
	r.dev = offload.NewDevQP(r.link, l, 0, 0)
	r.host, err = offload.NewHostQP(mem, l, 0, 0)
	must(err)
	return r
}

func (r *rig) ring() {
	_, _ = unix.Write(r.doorbell, binary.NativeEndian.AppendUint64(nil, 1))
}

// sleep waits for a descriptor, and reports whether it became readable.
func sleep(fd int, d time.Duration) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for end := time.Now().Add(d); ; {
		ts := unix.NsecToTimespec(max(int64(time.Until(end)), 0))
		n, err := unix.Ppoll(fds, &ts, nil)
		if err != unix.EINTR {
			return n > 0
		}
	}
}

// drive sends count records and checks their echoes.
func (r *rig) drive(count uint32) error {
	payload := func(seq uint32) []byte {
		return bytes.Repeat([]byte{byte(seq), byte(seq >> 8), 0xa5}, int(seq*7919%3000))
	}
	for sent, got := uint32(0), uint32(0); got < count; {
		moved := false
		for sent < count && sent-got < 40 {
			p := payload(sent)
			b := r.host.Emit(offload.OpSend, 0, 1, sent, 0, len(p))
			if b == nil {
				break
			}
			copy(b, p)
			sent++
			moved = true
		}
		if r.host.Publish() {
			r.ring()
		}
		for {
			rec, p, ok, err := r.host.Next()
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			if rec.Seq != got || !bytes.Equal(p, payload(got)) {
				return fmt.Errorf("echo %d of %d bytes, want %d of %d", rec.Seq, len(p), got, len(payload(got)))
			}
			got++
			moved = true
		}
		r.host.Release()
		if !moved && r.host.Arm() {
			if !sleep(r.interrupt, patience) {
				return fmt.Errorf("host missed a wake-up after %d of %d records", got, sent)
			}
			r.host.Disarm()
			var b [8]byte
			_, _ = unix.Read(r.interrupt, b[:])
		}
	}
	return nil
}

// echo is the DPU: it returns every record, and sleeps on the doorbell for as
// long as nothing is under way on the link.
func (r *rig) echo(stop chan struct{}) error {
	var held []byte
	var rec offload.Record
	holding := false
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		wait := r.link.Poll()
		if err := r.dev.Pump(); err != nil {
			return err
		}
		moved := false
		for {
			if !holding {
				var ok bool
				var err error
				if rec, held, ok, err = r.dev.Next(); err != nil {
					return err
				} else if !ok {
					break
				}
			}
			b := r.dev.Emit(offload.OpData, 0, rec.Sock, rec.Seq, 0, len(held))
			if b == nil {
				if !holding {
					held = bytes.Clone(held) // Flush gives its place to the host
				}
				holding = true
				break
			}
			holding = false
			copy(b, held)
			moved = true
		}
		if moved {
			r.dev.DisarmDoorbell() // the host rings once for each request
		}
		if err := r.dev.Flush(); err != nil {
			return err
		}
		if r.dev.InterruptDue() {
			r.dev.Interrupt()
			continue
		}
		switch {
		case moved || holding:
		case wait > 0:
			sleep(r.link.DoorbellFD(), time.Duration(wait))
		case !r.dev.Armed():
			r.dev.ArmDoorbell()
		case r.dev.Quiet():
			sleep(r.link.DoorbellFD(), patience)
			r.link.DoorbellAck()
			r.dev.DisarmDoorbell()
		}
	}
}
