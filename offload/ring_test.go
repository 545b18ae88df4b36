// SPDX-License-Identifier: Apache-2.0

package offload_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"pno/offload"
	"pno/offload/shm"
)

func smallLayout() offload.Layout {
	l := offload.DefaultLayout(1)
	l.Channels, l.H2DSize, l.D2HSize = 1, offload.MinRingSize, offload.MinRingSize
	l.RxWindow, l.TxWindow = offload.MaxPayload, offload.MaxPayload
	return l
}

type pair struct {
	mem  []byte
	host *offload.HostQP
	dev  *offload.DevQP
	l    offload.Layout
	dma  *counted
}

func newPair(t testing.TB, l offload.Layout) *pair {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "session")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(l.TotalSize())); err != nil {
		t.Fatal(err)
	}
	mem, err := syscall.Mmap(int(f.Fd()), 0, int(l.TotalSize()), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Munmap(mem) })
	r, err := shm.Map(int(f.Fd()), l.TotalSize())
	if err != nil {
		t.Fatal(err)
	}
	tr := &counted{Transport: r.NewTransport(-1)}
	t.Cleanup(func() { _ = tr.Close(); _ = r.Close() })
	host, err := offload.NewHostQP(mem, l, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	return &pair{mem, host, offload.NewDevQP(tr, l, 0, 0), l, tr}
}

func pattern(seq uint32, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(int(seq) + i)
	}
	return b
}

// TestRingsCarryRecordsInOrder drives both directions with random sizes over
// many wraps of the ring.
func TestRingsCarryRecordsInOrder(t *testing.T) {
	for name, l := range map[string]offload.Layout{"small": smallLayout(), "large": largeLayout()} {
		t.Run(name, func(t *testing.T) { carryRecords(t, l, false) })
		t.Run(name+", slow DMA", func(t *testing.T) { carryRecords(t, l, true) })
	}
}

func carryRecords(t *testing.T, l offload.Layout, slow bool) {
	p := newPair(t, l)
	p.dma.slow = slow
	rnd := rand.New(rand.NewSource(1))
	sizes := []int{0, 1, 15, 16, 17, 64, 1000, 9000, offload.MaxPayload}
	var out, in, dout, din uint32
	want := map[uint32]int{}
	dwant := map[uint32]int{}
	for din < 3000 {
		for range rnd.Intn(4) {
			n := sizes[rnd.Intn(len(sizes))]
			if b := p.host.Emit(offload.OpSend, 0, out, out, 7, n); b != nil {
				copy(b, pattern(out, n))
				want[out] = n
				out++
			}
		}
		p.host.Publish()
		if rnd.Intn(2) == 0 {
			p.dma.Poll()
		}
		if err := p.dev.Pump(); err != nil {
			t.Fatal(err)
		}
		for range rnd.Intn(6) {
			rec, b, ok, err := p.dev.Next()
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				break
			}
			if rec.Sock != in || rec.Seq != in || rec.Ack != 7 || !bytes.Equal(b, pattern(in, want[in])) {
				t.Fatalf("host to DPU record %d arrived as %+v", in, rec)
			}
			in++
		}
		for range rnd.Intn(4) {
			n := sizes[rnd.Intn(len(sizes))]
			fits := p.dev.Space() >= n
			b := p.dev.Emit(offload.OpData, 1, dout, dout, 9, n)
			if fits != (b != nil) && p.dev.Space() != offload.MaxPayload {
				t.Fatalf("Space %d but Emit(%d) granted: %v", p.dev.Space(), n, b != nil)
			}
			if b != nil {
				copy(b, pattern(dout, n))
				dwant[dout] = n
				dout++
			}
		}
		if err := p.dev.Flush(); err != nil {
			t.Fatal(err)
		}
		for range rnd.Intn(6) {
			rec, b, ok, err := p.host.Next()
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				break
			}
			if rec.Op != offload.OpData || rec.Sock != din || rec.Ack != 9 || !bytes.Equal(b, pattern(din, dwant[din])) {
				t.Fatalf("DPU to host record %d arrived as %+v", din, rec)
			}
			din++
		}
		p.host.Release()
	}
	if in == 0 || din == 0 {
		t.Fatal("nothing crossed")
	}
}

func TestSteadyStateAllocatesNothing(t *testing.T) {
	p := newPair(t, smallLayout())
	step := func() {
		p.host.Emit(offload.OpSend, 0, 1, 2, 3, 64)
		p.host.Publish()
		if err := p.dev.Pump(); err != nil {
			t.Fatal(err)
		}
		for {
			_, _, ok, err := p.dev.Next()
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				break
			}
		}
		p.dev.Emit(offload.OpData, 0, 1, 2, 3, 64)
		if err := p.dev.Flush(); err != nil {
			t.Fatal(err)
		}
		for {
			_, _, ok, err := p.host.Next()
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				break
			}
		}
		p.host.Release()
	}
	step()
	if n := testing.AllocsPerRun(2000, step); n != 0 {
		t.Errorf("%v allocations per round, want 0", n)
	}
}

// TestDPURefusesHostileControlLine writes what a broken or hostile host could.
func TestDPURefusesHostileControlLine(t *testing.T) {
	rec := func(op offload.Op, n uint16) []byte {
		b := make([]byte, 16)
		offload.PutRecord(b, offload.Record{Op: op, Len: n})
		return b
	}
	for _, c := range []struct {
		name string
		line offload.HostLine
		ring []byte
	}{
		{"producer more than a ring ahead", offload.HostLine{H2DProd: offload.MinRingSize + 16}, nil},
		{"producer unaligned", offload.HostLine{H2DProd: 8}, nil},
		{"producer huge", offload.HostLine{H2DProd: 1<<64 - 16}, nil},
		{"consumer beyond the producer", offload.HostLine{D2HCons: 16}, nil},
		{"consumer unaligned", offload.HostLine{D2HCons: 8}, nil},
		{"seen beyond the producer", offload.HostLine{D2HSeen: 16}, nil},
		{"record longer than what was produced", offload.HostLine{H2DProd: 16}, rec(offload.OpSend, 64)},
		{"record longer than a record may be", offload.HostLine{H2DProd: 1 << 16}, rec(offload.OpSend, offload.MaxPayload+1)},
		{"padding beyond what was produced", offload.HostLine{H2DProd: 16}, rec(offload.OpPad, 0)},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPair(t, smallLayout())
			o := p.l.QP(0, 0)
			copy(p.mem[o.H2D:], c.ring)
			*(*offload.HostLine)(unsafe.Pointer(&p.mem[o.HostLine])) = c.line
			err := p.dev.Pump()
			if err == nil {
				_, _, _, err = p.dev.Next()
			}
			if !errors.Is(err, offload.ErrProtocol) {
				t.Errorf("got %v, want a protocol violation", err)
			}
		})
	}
}

func TestHostRefusesHostileProducer(t *testing.T) {
	for name, prod := range map[string]uint64{
		"unaligned": 8, "a ring ahead": offload.MinRingSize + 16, "huge": 1<<64 - 16,
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, smallLayout())
			binary.LittleEndian.PutUint64(p.mem[p.l.QP(0, 0).DevLine:], prod)
			if _, _, _, err := p.host.Next(); !errors.Is(err, offload.ErrProtocol) {
				t.Errorf("got %v, want a protocol violation", err)
			}
		})
	}
}

// TestNoWakeupIsLost lets both ends sleep after every record; each is woken
// only through the interrupt and doorbell rules.
func TestNoWakeupIsLost(t *testing.T) {
	p := newPair(t, smallLayout())
	const rounds = 20000
	doorbell, interrupt := make(chan struct{}, 1), make(chan struct{}, 1)
	post := func(c chan struct{}) {
		select {
		case c <- struct{}{}:
		default:
		}
	}
	wait := func(c chan struct{}, who string) bool {
		select {
		case <-c:
			return true
		case <-time.After(10 * time.Second):
			t.Errorf("%s was never woken", who)
			return false
		}
	}
	done := make(chan struct{})
	go func() { // the DPU: echoes each record
		defer close(done)
		for n := 0; n < rounds; {
			if err := p.dev.Pump(); err != nil {
				t.Error(err)
				return
			}
			moved := false
			for {
				rec, _, ok, err := p.dev.Next()
				if err != nil {
					t.Error(err)
					return
				}
				if !ok {
					break
				}
				p.dev.Emit(offload.OpData, 0, rec.Sock, rec.Seq, 0, 0)
				n++
				moved = true
			}
			if !moved && !p.dev.Armed() {
				p.dev.ArmDoorbell()
			}
			if err := p.dev.Flush(); err != nil {
				t.Error(err)
				return
			}
			if err := p.dev.Pump(); err != nil {
				t.Error(err)
				return
			}
			if p.dev.InterruptDue() {
				p.dev.Interrupt()
				post(interrupt)
			}
			if p.dev.Quiet() {
				if !wait(doorbell, "the DPU") {
					return
				}
				p.dev.DisarmDoorbell()
			}
			if n%7 == 0 {
				runtime.Gosched()
			}
		}
	}()
	for i := range uint32(rounds) {
		p.host.Emit(offload.OpSend, 0, 1, i, 0, 0)
		if p.host.Publish() {
			post(doorbell)
		}
		for got := false; !got; {
			_, _, ok, err := p.host.Next()
			if err != nil {
				t.Fatal(err)
			}
			if got = ok; !ok && p.host.Arm() && !wait(interrupt, "the host") {
				t.FailNow()
			}
			p.host.Disarm()
		}
		p.host.Release()
	}
	<-done
}

func FuzzDPUNext(f *testing.F) {
	f.Add(uint32(64), uint32(0), uint64(0), []byte{byte(offload.OpSend), 0, 16, 0, 1, 0, 0, 0})
	f.Add(uint32(4096), uint32(0), uint64(0), []byte{0})
	f.Add(uint32(65536), uint32(4096), uint64(65536-64), []byte{0})
	f.Add(uint32(64), uint32(65536), uint64(128), []byte{byte(offload.OpSend), 0, 48, 0})
	dgram := make([]byte, offload.RecordSpace(offload.DgramSize))
	offload.PutRecord(dgram, offload.Record{Op: offload.OpSendDgram, Flags: offload.FlagPart, Len: offload.DgramSize, Sock: 1})
	f.Add(uint32(len(dgram)), uint32(0), uint64(0), dgram)
	p := newPair(f, smallLayout())
	o := p.l.QP(0, 0)
	line := (*offload.HostLine)(unsafe.Pointer(&p.mem[o.HostLine]))
	f.Fuzz(func(t *testing.T, prod, more uint32, pad uint64, ring []byte) {
		copy(p.mem[o.H2D:o.H2D+uint64(p.l.H2DSize)], ring)
		*line = offload.HostLine{}
		r, err := shm.Map(memFile(t, p.mem), p.l.TotalSize())
		if err != nil {
			t.Fatal(err)
		}
		tr := &lineFrom{Transport: r.NewTransport(-1), line: line}
		defer func() { _ = tr.Close(); _ = r.Close() }()
		dev := offload.NewDevQP(tr, p.l, 0, 0)
		total := 0
		for _, prod := range []uint64{uint64(prod), uint64(prod) + uint64(more)} {
			*line = offload.HostLine{H2DProd: prod, H2DPad: pad}
			if dev.Pump() != nil {
				return
			}
			for {
				rec, b, ok, err := dev.Next()
				if err != nil {
					return
				}
				if !ok {
					break
				}
				if d, err := offload.GetDgram(b); err == nil && d.Len > offload.MaxDgram {
					t.Fatalf("datagram of %d bytes", d.Len)
				}
				if int(rec.Len) != len(b) {
					t.Fatalf("record of %d bytes came with %d", rec.Len, len(b))
				}
				if total += offload.RecordSpace(len(b)); uint64(total) > prod {
					t.Fatalf("%d bytes of records out of %d produced", total, prod)
				}
			}
			if s := dev.Stats(); s.H2DUsed != 0 || s.H2DConsumed != uint64(total) {
				t.Fatalf("statistics %+v after %d bytes of records", s, total)
			}
			if err := dev.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// lineFrom has the host's control line changed without writing the file.
type lineFrom struct {
	offload.Transport
	line *offload.HostLine
}

func (l *lineFrom) Post(ops ...*offload.DMA) error {
	if op := ops[0]; op.Line && op.Kind == offload.DMARead {
		op.Done = true
		copy(op.Buf, unsafe.Slice((*byte)(unsafe.Pointer(l.line)), offload.CacheLine))
		return nil
	}
	return l.Transport.Post(ops...)
}

// memFile gives a descriptor of a fresh file with the same contents.
func memFile(t *testing.T, mem []byte) int {
	f, err := os.CreateTemp(t.TempDir(), "session")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if _, err := f.Write(mem); err != nil {
		t.Fatal(err)
	}
	return int(f.Fd())
}

func FuzzDecodeControl(f *testing.F) {
	f.Add([]byte(`{"type":"hello","id":1,"version":65536}`))
	f.Add([]byte(`{"type":"session_open","id":2,"layout":{"channels":1}} x`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := offload.DecodeControl(b)
		if err != nil {
			if !errors.Is(err, offload.ErrControl) {
				t.Fatalf("untyped error %v", err)
			}
			return
		}
		if _, err := offload.EncodeControl(m); err != nil && !errors.Is(err, offload.ErrControl) {
			t.Fatalf("decoded message does not encode: %v", err)
		}
	})
}
