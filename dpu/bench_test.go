// SPDX-License-Identifier: Apache-2.0

package dpu_test

import (
	"context"
	"io"
	"runtime/pprof"
	"sync"
	"testing"

	"pno/offload"
)

// BenchmarkEcho sends small messages over many connections to a host that
// answers at once. The client and the host share the process with the DPU;
// for the DPU's own cost profile it (-cpuprofile) and look at the goroutines
// labelled part=dpu.
func BenchmarkEcho(b *testing.B) {
	const conns = 64
	var r *rig
	pprof.Do(context.Background(), pprof.Labels("part", "dpu"), func(context.Context) { r = newRig(b, rigOptions{}) })
	h := newHost(b, r.agent, testLayout(1))
	h.listen(0, dpuAddr+":80").subscribe(1024)
	h.do(func() { h.sleep, h.serve = true, func(s *hsock) { s.autoEcho() } })
	var wg sync.WaitGroup
	b.ResetTimer()
	for i := range conns {
		c := r.remote.dial(b, dpuAddr+":80")
		wg.Go(func() {
			buf := make([]byte, 64)
			for range (b.N + conns - 1 - i) / conns {
				if _, err := c.Write(buf); err != nil {
					b.Error(err)
					return
				}
				if _, err := io.ReadFull(c, buf); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	st := r.d.Stats()
	n := float64(b.N)
	b.ReportMetric(float64(st.Traffic.Interrupts)/n, "interrupts/op")
	b.ReportMetric(float64(st.Shards[0].Loops)/n, "turns/op")
	b.ReportMetric(float64(st.Links[0].TxPackets)/n, "txframes/op")
	b.ReportMetric(float64(st.Shards[0].Parks)/n, "parks/op")
}

// BenchmarkBulk moves megabytes, from the host to the remote machine (send)
// and the other way (receive).
func BenchmarkBulk(b *testing.B) {
	const size = 1 << 20
	for _, dir := range []string{"send", "receive"} {
		b.Run(dir, func(b *testing.B) {
			var r *rig
			pprof.Do(context.Background(), pprof.Labels("part", "dpu"), func(context.Context) { r = newRig(b, rigOptions{}) })
			l := offload.DefaultLayout(1)
			l.Channels = 2
			h := newHost(b, r.agent, l)
			ls := h.listen(0, dpuAddr+":80")
			h.do(func() { h.sleep = true })
			c := r.remote.dial(b, dpuAddr+":80")
			s := ls.accept()
			data, buf := make([]byte, size), make([]byte, size)
			b.SetBytes(size)
			b.ResetTimer()
			go func() {
				for range b.N {
					if dir == "send" {
						_ = s.write(data)
					} else {
						_, _ = c.Write(data)
					}
				}
			}()
			for n := 0; n < b.N*size; {
				m, err := 0, error(nil)
				if dir == "send" {
					m, err = c.Read(buf)
				} else {
					m, err = s.read(buf)
				}
				if err != nil {
					b.Fatal(err)
				}
				n += m
			}
		})
	}
}
