// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"encoding/binary"
	"path/filepath"
	"testing"
	"time"

	"pno/host/control/controltest"
	"pno/internal/attach"
	"pno/offload"
)

// FuzzSession sends a process's messages in any order and with any content to a
// living server. Whatever happens to that process's session, the next process
// must be served.
func FuzzSession(f *testing.F) {
	packets := func(ms ...attach.Message) (out []byte) {
		for _, m := range ms {
			b := attach.Encode(m, 1)
			out = binary.LittleEndian.AppendUint16(out, uint16(len(b)))
			out = append(out, b...)
		}
		return out
	}
	reg := &attach.RegisterSocket{Cookie: 1}
	reg.Kind, reg.Handle[0] = attach.SockListener, handle
	f.Add(packets(reg, &attach.LookupSocket{Cookie: 1}, &attach.UnregisterSocket{Cookie: 1}))
	f.Add(packets(&attach.ChannelOpen{Channel: 3}, &attach.ChannelOpen{Channel: 3}, &attach.Ready{}))
	f.Add(packets(&attach.Forked{Token: tokenOf("x"), PID: 1}, &attach.Forked{Token: tokenOf("x")}))
	f.Add(packets(&attach.Hello{ABIMajor: 1}, &attach.Ack{}))
	f.Add([]byte{4, 0, 1, 2, 3, 4})

	dir := f.TempDir()
	dpu := controltest.Start(f, filepath.Join(dir, "dpu"), 2)
	listen := filepath.Join(dir, "attach")
	s, err := New(Config{Listen: listen, DPU: dpu.Path, Log: quiet(), State: filepath.Join(dir, "state")})
	if err != nil {
		f.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	f.Cleanup(func() { cancel(); <-done })
	<-s.Ready()

	f.Fuzz(func(t *testing.T, data []byte) {
		b := &bench{Server: s, listen: listen}
		c := b.attachAs(t, hello("fuzz"))
		raw, err := c.c.File()
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		for n := 0; len(data) > 2 && n < 16; n++ {
			size := min(int(binary.LittleEndian.Uint16(data)), len(data)-2)
			packet := data[2 : 2+size]
			data = data[2+size:]
			if _, err := raw.Write(packet); err != nil || size == 0 {
				break // the server has had enough
			}
		}
		c.close()
		next := b.attachAs(t, hello("next"))
		next.ask(&attach.Ready{})
		if next.header().Status != offload.StatusUp {
			t.Error("the next process is not served")
		}
		deadline := time.Now().Add(10 * time.Second)
		for len(s.Report().Sessions) > 3 && time.Now().Before(deadline) {
			time.Sleep(time.Millisecond)
		}
		if n := len(s.Report().Sessions); n > 3 {
			t.Errorf("%d sessions are left", n)
		}
	})
}
