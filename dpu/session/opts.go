// SPDX-License-Identifier: Apache-2.0

package session

import (
	"encoding/binary"
	"syscall"

	"pno/dpu/netstack"
	"pno/offload"
)

// maxOpts bounds the options that a listener remembers for its connections.
const maxOpts = 64

// setOpt handles SetOpt.
func (t *Table) setOpt(q *queue, h *hold, rec offload.Record, payload []byte) string {
	o, err := offload.GetOptVal(payload)
	if err != nil {
		return "malformed socket option"
	}
	s := h.sock
	errno := ebadf
	switch {
	case s.u != nil:
		errno = uint32(s.u.SetOption(o.Level, o.Name, o.Val[:o.Len]))
	case s.ep == nil:
	case isTransparent(o.Level, o.Name):
		errno = uint32(t.optTransparent(h, o.Val[0]|o.Val[1]|o.Val[2]|o.Val[3] != 0))
	default:
		errno = uint32(netstack.SetOption(s.ep, s.v6, o.Level, o.Name, o.Val[:o.Len]))
		if s.twin != nil {
			netstack.SetOption(s.twin, s.v6, o.Level, o.Name, o.Val[:o.Len])
		}
	}
	if errno == 0 && s.u == nil {
		s.noteCork(o)
	}
	if errno == 0 && s.u == nil && o.Level == syscall.SOL_SOCKET {
		t.limitWindows(h, o)
	}
	if errno == 0 && s.u == nil && (s.kind == bound || s.kind == listening) {
		if s.l == nil {
			s.l = &listener{}
		}
		s.l.remember(o)
	}
	if rec.Seq != 0 {
		t.reply(q, rec, errno, nil)
	}
	return ""
}

// least is the smallest window that a buffer size can leave.
const least = 2048

// limitWindows makes the socket's windows as small as its buffers: what waits
// on the host counts as much as what waits in the stack.
func (t *Table) limitWindows(h *hold, o offload.OptVal) {
	n := max(binary.LittleEndian.Uint32(o.Val[:]), least)
	switch o.Name {
	case syscall.SO_SNDBUF:
		h.txLimit = n
	case syscall.SO_RCVBUF:
		h.rxLimit = n
	default:
		return
	}
	t.later(h.sock)
}

// remember keeps an option for the connections to come.
func (l *listener) remember(o offload.OptVal) {
	for i := range l.opts {
		if l.opts[i].Level == o.Level && l.opts[i].Name == o.Name {
			l.opts[i] = o
			return
		}
	}
	if len(l.opts) < maxOpts {
		l.opts = append(l.opts, o)
	}
}

// inheritOpts gives a new connection its listener's options, as Linux does.
func (t *Table) inheritOpts(s, c *socket) {
	for i := range s.l.opts {
		o := &s.l.opts[i]
		netstack.SetOption(c.ep, c.v6, o.Level, o.Name, o.Val[:o.Len])
		c.noteCork(*o)
	}
}

// getOpt handles GetOpt.
func (t *Table) getOpt(q *queue, h *hold, rec offload.Record, payload []byte) string {
	o, err := offload.GetOptVal(payload)
	if err != nil {
		return "malformed socket option"
	}
	s := h.sock
	if s.u != nil {
		t.getOptUDP(q, s, rec, &o)
		return ""
	}
	if s.ep == nil {
		t.reply(q, rec, ebadf, nil)
		return ""
	}
	t.acknowledge(h)
	n, errno := s.stack.GetOption(s.ep, s.v6, o.Level, o.Name, o.Val[:])
	if errno != 0 {
		t.reply(q, rec, uint32(errno), nil)
		return ""
	}
	o.Len = uint32(n)
	var b [offload.OptValSize]byte
	o.Put(b[:])
	t.reply(q, rec, 0, b[:])
	return ""
}
