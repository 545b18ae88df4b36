// SPDX-License-Identifier: Apache-2.0

package xsk

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"pno/internal/netns"
)

// BenchmarkTransmit sends 64-byte frames over a veth pair, with one Flush per
// so many frames. The wire's other end receives them in between, since the
// completion of a frame waits for that. Every operation is 64 frames.
func BenchmarkTransmit(b *testing.B) {
	const burst = 64
	for _, batch := range []int{1, 8, burst} {
		b.Run(fmt.Sprintf("flush=%d", batch), func(b *testing.B) {
			na, nb := netns.New(b, "a"), netns.New(b, "b")
			netns.VethPair(b, na, "eth0", nb, "eth0")
			from, to := openIn(b, na, Options{Interface: "eth0"}), openIn(b, nb, Options{Interface: "eth0"})
			tx, rx := from.Queues()[0], to.Queues()[0]
			frame, frames := frameOf(unix.ETH_P_IP, 64), make([][]byte, burst)
			start := from.Stats()
			for b.Loop() {
				for sent := 0; sent < burst; {
					buf := tx.TxAlloc()
					if buf != nil {
						tx.TxCommit(copy(buf, frame))
						sent++
					}
					if sent%batch == 0 || buf == nil {
						if err := tx.Flush(); err != nil {
							b.Fatal(err)
						}
					}
				}
				for {
					n, err := rx.Recv(frames)
					if err != nil {
						b.Fatal(err)
					}
					if n == 0 {
						break
					}
					rx.Release()
				}
			}
			end := from.Stats()
			packets := float64(end.TxPackets - start.TxPackets)
			b.ReportMetric(packets/b.Elapsed().Seconds(), "packets/s")
			b.ReportMetric(float64(end.Kicks-start.Kicks)/packets, "kicks/packet")
			b.ReportMetric(0, "ns/op")
		})
	}
}
