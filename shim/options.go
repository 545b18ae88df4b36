// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"encoding/binary"
	"net"
	"syscall"
	"time"

	"pno/offload"
)

// option is a socket option for the DPU.
type option struct {
	level, name uint32
	value       [8]byte
	n           int
}

func number(level, name, v int) option {
	o := option{level: uint32(level), name: uint32(name), n: 4}
	binary.LittleEndian.PutUint32(o.value[:], uint32(v))
	return o
}

func flag(level, name int, on bool) option {
	v := 0
	if on {
		v = 1
	}
	return number(level, name, v)
}

func (o option) payload() []byte {
	v := offload.OptVal{Level: o.level, Name: o.name, Len: uint32(o.n)}
	copy(v.Val[:], o.value[:o.n])
	b := make([]byte, offload.OptValSize)
	v.Put(b)
	return b
}

func (l *lane) setOptions(handle uint32, list []option) {
	for _, o := range list {
		l.control(offload.OpSetOpt, 0, handle, 0, 0, o.payload())
	}
}

const (
	keepAliveDefault = 15 * time.Second // package net's
	keepAliveCount   = 9
)

// keepAlive is what a net.KeepAliveConfig means, with package net's defaults
// for zero and unchanged values for negative ones.
func keepAlive(k net.KeepAliveConfig) []option {
	if !k.Enable {
		return []option{flag(syscall.SOL_SOCKET, syscall.SO_KEEPALIVE, false)}
	}
	out := []option{flag(syscall.SOL_SOCKET, syscall.SO_KEEPALIVE, true)}
	for _, d := range []struct {
		name int
		v    time.Duration
	}{{syscall.TCP_KEEPIDLE, k.Idle}, {syscall.TCP_KEEPINTVL, k.Interval}} {
		if d.v == 0 {
			d.v = keepAliveDefault
		}
		if d.v > 0 {
			out = append(out, number(syscall.IPPROTO_TCP, d.name, int((d.v+time.Second-1)/time.Second)))
		}
	}
	if k.Count == 0 {
		k.Count = keepAliveCount
	}
	if k.Count > 0 {
		out = append(out, number(syscall.IPPROTO_TCP, syscall.TCP_KEEPCNT, k.Count))
	}
	return out
}

// defaults are the options that package net gives every connection.
func defaults(period time.Duration, k net.KeepAliveConfig) []option {
	out := []option{flag(syscall.IPPROTO_TCP, syscall.TCP_NODELAY, true)}
	if !k.Enable && period >= 0 {
		k = net.KeepAliveConfig{Enable: true, Idle: period}
	}
	if k.Enable {
		out = append(out, keepAlive(k)...)
	}
	return out
}

func (c *Conn) set(list ...option) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return c.fail("set", net.ErrClosed)
	}
	if c.state == stateOpen {
		c.l.setOptions(c.entry.handle, list)
	}
	return nil
}

// SetNoDelay turns Nagle's algorithm off (the default) or on.
func (c *Conn) SetNoDelay(on bool) error {
	return c.set(flag(syscall.IPPROTO_TCP, syscall.TCP_NODELAY, on))
}

// SetKeepAlive turns keep-alive probes on or off.
func (c *Conn) SetKeepAlive(on bool) error {
	return c.set(flag(syscall.SOL_SOCKET, syscall.SO_KEEPALIVE, on))
}

// SetKeepAlivePeriod sets the time of silence before the first probe.
func (c *Conn) SetKeepAlivePeriod(d time.Duration) error {
	if d == 0 {
		d = keepAliveDefault
	} else if d < 0 {
		return nil
	}
	return c.set(number(syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE, int((d+time.Second-1)/time.Second)))
}

// SetKeepAliveConfig sets all that concerns keep-alive probes.
func (c *Conn) SetKeepAliveConfig(k net.KeepAliveConfig) error { return c.set(keepAlive(k)...) }

// SetLinger says what Close does with data that the peer does not have yet: 0
// resets the connection, any other value sends it in the background. Close
// itself never waits.
func (c *Conn) SetLinger(sec int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return c.fail("set", net.ErrClosed)
	}
	c.noLinger = sec == 0
	return nil
}

// SetReadBuffer sizes the DPU's receive buffer.
func (c *Conn) SetReadBuffer(bytes int) error {
	return c.set(number(syscall.SOL_SOCKET, syscall.SO_RCVBUF, bytes))
}

// SetWriteBuffer sizes the DPU's send buffer.
func (c *Conn) SetWriteBuffer(bytes int) error {
	return c.set(number(syscall.SOL_SOCKET, syscall.SO_SNDBUF, bytes))
}
