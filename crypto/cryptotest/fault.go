// SPDX-License-Identifier: Apache-2.0

package cryptotest

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"pno/crypto/engine"
)

// Fault makes a worker misbehave.
type Fault struct {
	mu    sync.Mutex
	delay time.Duration
	wrong bool
	stall bool
	held  []func()
	late  sync.WaitGroup
}

// Delay makes every completion late.
func (f *Fault) Delay(d time.Duration) { f.mu.Lock(); f.delay = d; f.mu.Unlock() }

// Wrong changes a bit of every signature, after the worker has verified it.
func (f *Fault) Wrong(on bool) { f.mu.Lock(); f.wrong = on; f.mu.Unlock() }

// Stall keeps every completion back until Clear.
func (f *Fault) Stall() { f.mu.Lock(); f.stall = true; f.mu.Unlock() }

// Resume ends a stall, and no other fault.
func (f *Fault) Resume() {
	f.mu.Lock()
	held := f.held
	f.stall, f.held = false, nil
	f.mu.Unlock()
	for _, release := range held {
		release()
	}
}

// Held is how many completions are kept back.
func (f *Fault) Held() int { f.mu.Lock(); defer f.mu.Unlock(); return len(f.held) }

// Clear ends all of that, and waits for what was held back.
func (f *Fault) Clear() {
	f.mu.Lock()
	f.delay, f.wrong = 0, false
	f.mu.Unlock()
	f.Resume()
	f.late.Wait()
}

// Sink is a sink with the faults.
func (f *Fault) Sink(next engine.Sink) engine.Sink {
	return func(done []*engine.Op) {
		if f.keep(done, next) {
			return
		}
		next(done)
	}
}

// keep applies the faults; true means that next is called later.
func (f *Fault) keep(done []*engine.Op, next engine.Sink) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.wrong {
		for _, op := range done {
			if len(op.Out) > 8 {
				op.Out[len(op.Out)-3] ^= 0x10
			}
		}
	}
	kept := append([]*engine.Op(nil), done...)
	switch {
	case f.stall:
		f.held = append(f.held, func() { next(kept) })
	case f.delay > 0:
		f.late.Add(1)
		time.AfterFunc(f.delay, func() {
			defer f.late.Done()
			next(kept)
		})
	default:
		return false
	}
	return true
}

// Link is a TCP relay to a worker, which can be cut.
type Link struct {
	lis    net.Listener
	target string

	mu    sync.Mutex
	cut   bool
	woken *sync.Cond
	conns map[net.Conn]struct{}
}

// NewLink relays to an address until the test ends.
func NewLink(t testing.TB, target string) *Link {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &Link{lis: lis, target: target, conns: map[net.Conn]struct{}{}}
	l.woken = sync.NewCond(&l.mu)
	go l.accept()
	t.Cleanup(func() {
		lis.Close()
		l.Mend()
		l.Break()
	})
	return l
}

// Addr is where to connect.
func (l *Link) Addr() string { return l.lis.Addr().String() }

// Cut swallows everything, both ways, as a partition does; connections stay.
func (l *Link) Cut() { l.mu.Lock(); l.cut = true; l.mu.Unlock() }

// Mend lets what was swallowed through.
func (l *Link) Mend() { l.mu.Lock(); l.cut = false; l.woken.Broadcast(); l.mu.Unlock() }

// Break closes every connection.
func (l *Link) Break() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.conns {
		c.Close()
	}
}

func (l *Link) accept() {
	for {
		in, err := l.lis.Accept()
		if err != nil {
			return
		}
		go l.relay(in)
	}
}

func (l *Link) relay(in net.Conn) {
	defer in.Close()
	out, err := net.Dial("tcp", l.target)
	if err != nil {
		return
	}
	defer out.Close()
	l.mu.Lock()
	l.conns[in], l.conns[out] = struct{}{}, struct{}{}
	l.mu.Unlock()
	done := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{in, out}, {out, in}} {
		go func() {
			_, _ = io.Copy(gate{l, way[1]}, way[0])
			in.Close()
			out.Close()
			done <- struct{}{}
		}()
	}
	<-done
	<-done
	l.mu.Lock()
	delete(l.conns, in)
	delete(l.conns, out)
	l.mu.Unlock()
}

// gate writes while the link is not cut.
type gate struct {
	l *Link
	c net.Conn
}

func (g gate) Write(b []byte) (int, error) {
	g.l.mu.Lock()
	for g.l.cut {
		g.l.woken.Wait()
	}
	g.l.mu.Unlock()
	return g.c.Write(b)
}
