// SPDX-License-Identifier: Apache-2.0

package edge

import (
	"io"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"

	"pno/sim/wire"
)

// BenchmarkBulk is one connection from behind the wire to a loopback client.
// Both stacks and the client share this machine.
func BenchmarkBulk(b *testing.B) {
	w := newWorld(b, wire.Config{}, publish(inside4))
	const size = 16 << 20
	block := make([]byte, 256<<10)
	w.listen(b, inside4, func(f *gonet.TCPConn) {
		one := make([]byte, 1)
		for {
			if _, err := io.ReadFull(f, one); err != nil {
				_ = f.Close()
				return
			}
			for range size / len(block) {
				if _, err := f.Write(block); err != nil {
					return
				}
			}
		}
	})
	c := w.dial(b)
	_ = c.SetDeadline(time.Time{})
	sink := make([]byte, 256<<10)
	b.SetBytes(size)
	for b.Loop() {
		if _, err := c.Write([]byte{1}); err != nil {
			b.Fatal(err)
		}
		for got := 0; got < size; {
			n, err := c.Read(sink)
			if err != nil {
				b.Fatal(err)
			}
			got += n
		}
	}
}

// BenchmarkPingPong is 32 connections that each exchange 64 bytes in turn.
func BenchmarkPingPong(b *testing.B) {
	w := newWorld(b, wire.Config{}, publish(inside4))
	w.listen(b, inside4, func(f *gonet.TCPConn) {
		_, _ = io.Copy(f, f)
		_ = f.Close()
	})
	const conns = 32
	work := make(chan struct{}, 1024)
	var wg sync.WaitGroup
	for range conns {
		c := w.dial(b)
		_ = c.SetDeadline(time.Time{})
		wg.Go(func() {
			buf := make([]byte, 64)
			for range work {
				if _, err := c.Write(buf); err != nil {
					return
				}
				if _, err := io.ReadFull(c, buf); err != nil {
					return
				}
			}
		})
	}
	b.ReportAllocs()
	for b.Loop() {
		work <- struct{}{}
	}
	close(work)
	wg.Wait()
}
