// SPDX-License-Identifier: Apache-2.0

package shim_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"pno/host"
	"pno/host/control/controltest"
	"pno/offload"
	"pno/offload/shm"
	"pno/shim"
	"pno/sim/topology"
)

// fakeDPU answers by a script, over the real rings. It has one shard.
type fakeDPU struct {
	t    testing.TB
	host *host.Server
	book *controltest.Server
	qp   *offload.DevQP
	tr   *shm.Transport

	// answer is called for each record of the host's.
	answer func(rec offload.Record, payload []byte)
	stop   atomic.Bool
	done   chan struct{}
	last   map[offload.Op]offload.Record
}

var pairOf = offload.AddrPair{
	Local: offload.AddrFrom(netip.MustParseAddrPort("198.18.0.2:80")), Peer: offload.AddrFrom(netip.MustParseAddrPort("198.18.0.1:4000")),
}

func startFake(t testing.TB) *fakeDPU {
	t.Helper()
	dir := t.TempDir()
	f := &fakeDPU{t: t, book: controltest.Start(t, filepath.Join(dir, "dpud"), 1), done: make(chan struct{}), last: map[offload.Op]offload.Record{}}
	var err error
	f.host, err = host.New(host.Config{Listen: filepath.Join(dir, "hostd"), DPU: f.book.Path, Policy: topology.Policy(),
		Log: slog.New(slog.DiscardHandler), Layout: offload.Layout{Channels: 1, Shards: 1, H2DSize: 1 << 16, D2HSize: 1 << 16, RxWindow: 1 << 15, TxWindow: 1 << 15}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- f.host.Serve(ctx) }()
	<-f.host.Ready()
	t.Cleanup(func() {
		f.stop.Store(true)
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	if !f.host.WaitDPU(ctx, 10*time.Second) {
		t.Fatal("hostd does not reach the fake DPU")
	}
	t.Setenv("PNO_HOSTD", filepath.Join(dir, "hostd"))
	return f
}

// attach maps the session that the process has now.
func (f *fakeDPU) attach() {
	f.t.Helper()
	sessions := f.host.Report().Sessions
	if len(sessions) != 1 {
		f.t.Fatalf("%d sessions", len(sessions))
	}
	x := f.book.Session(sessions[0].ID)
	r, err := shm.Map(x.FDs[0], x.Layout.TotalSize())
	if err != nil {
		f.t.Fatal(err)
	}
	intr, err := syscall.Dup(x.Channels[0])
	if err != nil {
		f.t.Fatal(err)
	}
	if err := r.OpenChannel(0, intr); err != nil {
		f.t.Fatal(err)
	}
	f.tr = r.NewTransport(-1)
	f.qp = offload.NewDevQP(f.tr, x.Layout, 0, 0)
	go f.loop()
	f.t.Cleanup(func() {
		f.stop.Store(true)
		<-f.done
		_ = f.tr.Close()
		_ = r.Close()
	})
}

func (f *fakeDPU) loop() {
	defer close(f.done)
	for ; !f.stop.Load(); time.Sleep(100 * time.Microsecond) {
		if f.qp.Pump() != nil {
			return
		}
		for {
			rec, payload, ok, err := f.qp.Next()
			if err != nil {
				return
			}
			if !ok {
				break
			}
			f.last[rec.Op] = rec
			f.answer(rec, payload)
		}
		_ = f.qp.Flush()
		_ = f.qp.Pump()
		if f.qp.InterruptDue() {
			f.qp.Interrupt()
		}
	}
}

// emit sends a record as the DPU.
func (f *fakeDPU) emit(op offload.Op, sock, seq, ack uint32, payload []byte) {
	copy(f.qp.Emit(op, 0, sock, seq, ack, len(payload)), payload)
}

func (f *fakeDPU) reply(rec offload.Record, errno uint32, payload []byte) {
	f.emit(offload.OpReply, rec.Sock, rec.Seq, errno, payload)
}

func addrPair() []byte {
	b := make([]byte, offload.AddrPairSize)
	pairOf.Put(b)
	return b
}

// polite answers requests as a DPU does.
func (f *fakeDPU) polite(rec offload.Record, _ []byte) {
	switch rec.Op {
	case offload.OpConnect:
		f.emit(offload.OpConnected, rec.Sock, 0, 0, addrPair())
	case offload.OpBind:
		b := make([]byte, offload.AddrSize)
		pairOf.Local.Put(b)
		f.reply(rec, 0, b)
	case offload.OpListen:
		f.reply(rec, 0, nil)
	}
}

// echo answers data with itself; rx counts what was sent to the host.
func (f *fakeDPU) echo(rx *uint32) func(offload.Record, []byte) {
	return func(rec offload.Record, p []byte) {
		if rec.Op != offload.OpSend {
			f.polite(rec, p)
			return
		}
		f.emit(offload.OpData, rec.Sock, *rx, rec.Seq+uint32(len(p)), p)
		*rx += uint32(len(p))
	}
}

// run attaches the process and makes a connection through the fake.
func (f *fakeDPU) run(answer func(offload.Record, []byte)) (net.Conn, error) {
	f.t.Helper()
	f.answer = answer
	type result struct {
		c   net.Conn
		err error
	}
	dialled := make(chan result, 1)
	go func() {
		d := shim.Dialer{Timeout: 5 * time.Second}
		c, err := d.Dial("tcp", "198.18.0.9:80")
		dialled <- result{c, err}
	}()
	for end := time.Now().Add(10 * time.Second); len(f.host.Report().Sessions) == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			f.t.Fatal("the process does not attach")
		}
	}
	f.attach()
	r := <-dialled
	if r.c != nil {
		f.t.Cleanup(func() { _ = r.c.Close() })
	}
	return r.c, r.err
}

// What no DPU sends ends the session, is counted, and takes nothing else down.
func TestHostileRecords(t *testing.T) {
	const conn = offload.HandleHost | 1 // the first handle of a session
	big := make([]byte, 20000)
	for _, tc := range []struct {
		name  string
		spoil func(f *fakeDPU)
	}{
		{"unknown operation", func(f *fakeDPU) { f.emit(99, conn, 0, 0, nil) }},
		{"operation of the host's", func(f *fakeDPU) { f.emit(offload.OpSend, conn, 0, 0, nil) }},
		{"data out of order", func(f *fakeDPU) { f.emit(offload.OpData, conn, 5, 0, []byte("x")) }},
		{"data beyond the window", func(f *fakeDPU) {
			f.emit(offload.OpData, conn, 0, 0, big)
			f.emit(offload.OpData, conn, uint32(len(big)), 0, big)
		}},
		{"data after the end", func(f *fakeDPU) {
			f.emit(offload.OpFin, conn, 0, 0, nil)
			f.emit(offload.OpData, conn, 0, 0, []byte("x"))
		}},
		{"end before the data", func(f *fakeDPU) { f.emit(offload.OpFin, conn, 7, 0, nil) }},
		{"short Accept", func(f *fakeDPU) { f.emit(offload.OpAccept, 1, conn, 0, []byte("x")) }},
		{"Accept with a handle of ours", func(f *fakeDPU) { f.emit(offload.OpAccept, conn+1, conn, 0, addrPair()) }},
		{"short Connected", func(f *fakeDPU) { f.emit(offload.OpConnected, conn, 0, 0, nil) }},
		{"overlong record", func(f *fakeDPU) {
			f.qp.Reserve(16)
			f.qp.Commit(offload.OpData, 0, conn, 0, 0, 60000) // longer than a record may be
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := startFake(t)
			var spoil atomic.Bool
			c, err := f.run(func(rec offload.Record, p []byte) {
				f.polite(rec, p)
				if rec.Op == offload.OpSend && !spoil.Swap(true) {
					tc.spoil(f)
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Write([]byte("go")); err != nil {
				t.Fatal(err)
			}
			_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
			_, err = io.Copy(io.Discard, c)
			if err == nil { // it had ended already
				_, err = c.Read(make([]byte, 1))
				for end := time.Now().Add(10 * time.Second); err == io.EOF && time.Now().Before(end); time.Sleep(time.Millisecond) {
					_, err = c.Read(make([]byte, 1))
				}
			}
			if !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the connection ends with %v", err)
			}
			if n := f.counter("session_hostile"); n != 1 {
				t.Errorf("session_hostile is %d", n)
			}
		})
	}
}

func (f *fakeDPU) counter(name string) uint64 {
	for _, c := range f.host.Report().Counters {
		if c.Name == name {
			return c.Value
		}
	}
	panic("no counter " + name)
}

// What may cross a close, and acknowledgements that cannot be true, do no harm.
func TestStaleRecords(t *testing.T) {
	f := startFake(t)
	c, err := f.run(func(rec offload.Record, p []byte) {
		f.polite(rec, p)
		if rec.Op != offload.OpSend {
			return
		}
		f.emit(offload.OpData, rec.Sock+77, 0, 0, []byte("nobody's"))
		f.emit(offload.OpData, 12345, 0, 0, []byte("nobody's"))
		f.emit(offload.OpReply, 0, 4711, 0, nil)
		f.emit(offload.OpTxAck, rec.Sock, 0, rec.Seq+1<<30, nil)
		f.emit(offload.OpAccept, 5, rec.Sock, 0, addrPair()) // of a listener that is none
		f.emit(offload.OpClaimed, rec.Sock, 3, 3, nil)
		f.emit(offload.OpRevoked, rec.Sock, 0, 0, nil)
		f.emit(offload.OpData, rec.Sock, 0, rec.Seq+uint32(rec.Len), []byte("fine"))
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("go")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 8)
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, err := c.Read(buf); string(buf[:n]) != "fine" || err != nil {
		t.Errorf("%q, %v", buf[:n], err)
	}
}

// More connections than were asked for end the session.
func TestUninvitedConnections(t *testing.T) {
	f := startFake(t)
	c, err := f.run(func(rec offload.Record, p []byte) {
		f.polite(rec, p)
		if rec.Op == offload.OpSubscribe {
			for i := range rec.Ack + 1 {
				f.emit(offload.OpAccept, 1+i, rec.Sock, 0, addrPair())
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := shim.Listen("tcp", "198.18.0.2:80")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the session goes on: %v", err)
	}
}

// Errors of a connect, whatever their number, and redirects, to wherever.
func TestConnectAnswers(t *testing.T) {
	for errno, want := range map[uint32]error{
		uint32(syscall.ECONNREFUSED): syscall.ECONNREFUSED,
		uint32(syscall.EHOSTUNREACH): syscall.EHOSTUNREACH,
		0:                            syscall.ECONNRESET,
		70000:                        nil, // a redirect to shard 112
		offload.ErrnoRedirect:        syscall.EADDRNOTAVAIL,
		1 << 31:                      syscall.ECONNRESET,
	} {
		t.Run(fmt.Sprint(errno), func(t *testing.T) {
			f := startFake(t)
			_, err := f.run(func(rec offload.Record, _ []byte) {
				if rec.Op == offload.OpConnect {
					f.emit(offload.OpError, rec.Sock, errno, 0, nil)
				}
			})
			if err == nil || want != nil && !errors.Is(err, want) {
				t.Errorf("%v, want %v", err, want)
			}
		})
	}
}

// FuzzRecords puts arbitrary records into the ring of a process with a
// connection and a listener. Each input is a sequence of op, flags, sock, seq,
// ack and payload length.
func FuzzRecords(f *testing.F) {
	f.Add([]byte{66, 0, 1, 0, 0, 0, 4})
	f.Add([]byte{65, 0, 2, 1, 0, 48, 68, 0, 1, 0, 0, 48, 70, 0, 1, 104, 0, 0})
	f.Add([]byte{64, 0, 1, 1, 0, 0, 68, 1, 1, 0, 0, 0, 69, 0, 1, 0, 0, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		fake := startFake(t)
		sent := false
		c, err := fake.run(func(rec offload.Record, p []byte) {
			fake.polite(rec, p)
			if rec.Op != offload.OpSend || sent {
				return
			}
			sent = true
			for ; len(in) >= 7; in = in[7:] {
				sock := uint32(in[2] & 7)
				if in[2]&0x80 != 0 {
					sock |= offload.HandleHost
				}
				n := int(binary.LittleEndian.Uint16(in[5:]) % 2048)
				if b := fake.qp.Emit(offload.Op(in[0]), in[1], sock, uint32(int8(in[3])), uint32(int8(in[4])), n); b == nil {
					return
				}
			}
		})
		if err != nil {
			return
		}
		// After a new session nobody answers.
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		l, err := new(shim.ListenConfig).Listen(ctx, "tcp", "198.18.0.2:80")
		if err != nil {
			return
		}
		_ = l.(*shim.Listener).SetDeadline(time.Now().Add(20 * time.Millisecond))
		_ = c.SetDeadline(time.Now().Add(20 * time.Millisecond))
		_, _ = c.Write([]byte("go"))
		_, _ = c.Read(make([]byte, 100))
		if a, err := l.Accept(); err == nil {
			_ = a.Close()
		}
		_ = c.Close()
		_ = l.Close()
	})
}
