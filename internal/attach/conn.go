// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"pno/offload"
)

// MaxFDs is the most descriptors that one message brings: the memory and the
// interrupts of a re-adopted session, or the memory and doorbells of a new one.
const MaxFDs = 1 + offload.MaxChannels + offload.MaxShards

// Peer is the process at the other end, from the kernel.
type Peer struct {
	PID, UID, GID int
}

// Conn is one connection between a process and hostd.
type Conn struct {
	c   *net.UnixConn
	buf []byte
	oob []byte
}

// Packet is one received message. The receiver owns the descriptors.
type Packet struct {
	Msg    Message
	ID     uint32
	FDs    []int
	Sender Peer // of this very message; zero unless PassCred was called
}

// Close closes the descriptors that nobody took.
func (p *Packet) Close() {
	for _, fd := range p.FDs {
		_ = unix.Close(fd)
	}
	p.FDs = nil
}

// NewConn wraps an accepted or dialled connection.
func NewConn(c *net.UnixConn) *Conn {
	return &Conn{c: c, buf: make([]byte, MaxMessage+1),
		oob: make([]byte, unix.CmsgSpace(4*MaxFDs)+unix.CmsgSpace(unix.SizeofUcred))}
}

// Dial connects to hostd.
func Dial(path string, timeout time.Duration) (*Conn, error) {
	c, err := (&net.Dialer{Timeout: timeout}).Dial("unixpacket", path)
	if err != nil {
		return nil, fmt.Errorf("connect to hostd: %w", err)
	}
	return NewConn(c.(*net.UnixConn)), nil
}

// PassCred makes the kernel name the sender of each message.
func (c *Conn) PassCred() error {
	return c.control(func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSCRED, 1) })
}

// Peer returns the process that made the connection.
func (c *Conn) Peer() (Peer, error) {
	var p Peer
	err := c.control(func(fd int) error {
		u, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err == nil {
			p = Peer{int(u.Pid), int(u.Uid), int(u.Gid)}
		}
		return err
	})
	return p, err
}

// PeerPIDFD returns a descriptor of the process that made the connection. The
// kernel took it at connect, so that a reused pid cannot be meant; where the
// kernel is older than that, the pid is opened now.
func (c *Conn) PeerPIDFD(pid int) (int, error) {
	fd := -1
	err := c.control(func(sock int) error {
		var err error
		fd, err = unix.GetsockoptInt(sock, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
		return err
	})
	if err == nil {
		return fd, nil
	}
	if !errors.Is(err, unix.ENOPROTOOPT) && !errors.Is(err, unix.EINVAL) {
		return -1, fmt.Errorf("open the peer's process: %w", err)
	}
	if fd, err = unix.PidfdOpen(pid, 0); err != nil {
		return -1, fmt.Errorf("open process %d: %w", pid, err)
	}
	return fd, nil
}

func (c *Conn) control(f func(fd int) error) error {
	raw, err := c.c.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	if err := raw.Control(func(fd uintptr) { ferr = f(int(fd)) }); err != nil {
		return err
	}
	return ferr
}

// SetReadDeadline bounds the next Recv.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.c.SetReadDeadline(t) }

// SetWriteDeadline bounds the next Send.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.c.SetWriteDeadline(t) }

// File returns a copy of the connection for a child process.
func (c *Conn) File() (*os.File, error) { return c.c.File() }

// Close ends the connection.
func (c *Conn) Close() { _ = c.c.Close() }

// Send writes one message.
func (c *Conn) Send(m Message, id uint32, fds ...int) error {
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	b := Encode(m, id)
	if n, _, err := c.c.WriteMsgUnix(b, oob, nil); err != nil || n != len(b) {
		return fmt.Errorf("send attach message %d: %w", typeOf(m), errors.Join(err, shortWrite(n, len(b))))
	}
	return nil
}

func shortWrite(n, want int) error {
	if n != want {
		return io.ErrShortWrite
	}
	return nil
}

// Recv reads one message. io.EOF means that the other side is gone; any error
// that wraps ErrMessage that it spoke nonsense. On error no descriptor is left
// open.
func (c *Conn) Recv() (*Packet, error) {
	n, oobn, flags, _, err := c.c.ReadMsgUnix(c.buf, c.oob)
	if err != nil {
		if errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.EOF) {
			return nil, io.EOF
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, os.ErrDeadlineExceeded
		}
		return nil, fmt.Errorf("receive attach message: %w", err)
	}
	p := new(Packet)
	if err := p.ancillary(c.oob[:oobn]); err != nil {
		p.Close()
		return nil, err
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		p.Close()
		return nil, fmt.Errorf("packet cut off: %w", ErrMessage)
	}
	m, err := Decode(c.buf[:n])
	if err != nil {
		p.Close()
		return nil, err
	}
	p.Msg, p.ID = m, m.header().ID
	return p, nil
}

func (p *Packet) ancillary(oob []byte) error {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return fmt.Errorf("%w: %v", ErrMessage, err)
	}
	for i := range msgs {
		h := msgs[i].Header
		if h.Level != unix.SOL_SOCKET {
			continue
		}
		switch h.Type {
		case unix.SCM_RIGHTS:
			fds, err := unix.ParseUnixRights(&msgs[i])
			if err != nil {
				return fmt.Errorf("%w: %v", ErrMessage, err)
			}
			p.FDs = append(p.FDs, fds...)
		case unix.SCM_CREDENTIALS:
			u, err := unix.ParseUnixCredentials(&msgs[i])
			if err != nil {
				return fmt.Errorf("%w: %v", ErrMessage, err)
			}
			p.Sender = Peer{int(u.Pid), int(u.Uid), int(u.Gid)}
		}
	}
	return nil
}
