// SPDX-License-Identifier: Apache-2.0

package dpu_test

import (
	"errors"
	"net"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"pno/offload"
)

// agent is a host agent's control connection.
type agent struct {
	t    testing.TB
	c    *net.UnixConn
	mu   sync.Mutex
	id   uint64
	note chan *offload.Control
	back chan *offload.Control

	transparent bool // what it says of the next session's process
}

func dialAgent(t testing.TB, path string) *agent {
	t.Helper()
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	a := &agent{t: t, c: c, note: make(chan *offload.Control, 16), back: make(chan *offload.Control, 1)}
	go func() {
		defer close(a.back)
		b := make([]byte, offload.MaxControl)
		for {
			n, err := c.Read(b)
			if err != nil || n == 0 {
				return
			}
			m, err := offload.DecodeControl(b[:n])
			if err != nil {
				return
			}
			if m.ID == 0 {
				select {
				case a.note <- m:
				default: // a test that provokes many looks at none
				}
			} else {
				a.back <- m
			}
		}
	}()
	t.Cleanup(func() { _ = c.Close() })
	if _, err := a.call(&offload.Control{Type: offload.CtlHello, Version: offload.VersionMajor << 16}); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *agent) call(m *offload.Control, fds ...int) (*offload.Control, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.id++
	m.ID = a.id
	b, err := offload.EncodeControl(m)
	if err != nil {
		return nil, err
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if _, _, err := a.c.WriteMsgUnix(b, oob, nil); err != nil {
		return nil, err
	}
	r, ok := <-a.back
	if !ok {
		return nil, errors.New("control link closed")
	}
	if r.Type != offload.CtlOK {
		return r, errors.New(r.Error)
	}
	return r, nil
}
