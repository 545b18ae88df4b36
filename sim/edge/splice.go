// SPDX-License-Identifier: Apache-2.0

package edge

import (
	"bytes"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const chunk = 64 << 10

// chunks are the buffers of connections that are moving bytes just now, so
// that idle connections hold none.
var chunks = sync.Pool{New: func() any { return new([chunk]byte) }}

// splice carries one connection between a kernel socket and an endpoint of
// the edge's stack. up moves bytes from the kernel to the stack, down the other
// way, each in a goroutine. A direction that has seen the end of its stream
// passes it on and then watches its source for a reset, until both have ended.
type splice struct {
	kernel *net.TCPConn
	raw    syscall.RawConn
	ep     tcpip.Endpoint
	wq     *waiter.Queue

	readable, writable chan struct{} // of ep
	entries            [2]waiter.Entry

	finSent atomic.Bool // up is passing the end of its stream on
	halves  atomic.Int32
	once    sync.Once
	done    chan struct{}

	bytesUp, bytesDown *atomic.Uint64
}

const brokenEvents = waiter.EventHUp | waiter.EventErr | waiter.EventRdHUp

func newSplice(kernel *net.TCPConn, ep tcpip.Endpoint, wq *waiter.Queue) (*splice, error) {
	raw, err := kernel.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := &splice{kernel: kernel, raw: raw, ep: ep, wq: wq, done: make(chan struct{})}
	s.entries[0], s.readable = waiter.NewChannelEntry(waiter.ReadableEvents | brokenEvents)
	s.entries[1], s.writable = waiter.NewChannelEntry(waiter.WritableEvents | brokenEvents)
	for i := range s.entries {
		wq.EventRegister(&s.entries[i])
	}
	return s, nil
}

// run returns when the connection is over on both sides.
func (s *splice) run() {
	var down sync.WaitGroup
	down.Go(s.down)
	s.up()
	down.Wait()
	for i := range s.entries {
		s.wq.EventUnregister(&s.entries[i])
	}
}

// half tells that one direction has passed its end of stream on; after the
// second one the connection closes in peace.
func (s *splice) half() {
	if s.halves.Add(1) == 2 {
		s.once.Do(func() {
			close(s.done)
			s.ep.Close()
			_ = s.kernel.Close()
		})
	}
}

// reset ends both sides at once with RST.
func (s *splice) reset() {
	s.once.Do(func() {
		close(s.done)
		s.ep.Abort()
		resetKernel(s.kernel)
	})
}

func resetKernel(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}

// up carries kernel to stack.
func (s *splice) up() {
	var payload bytes.Reader
	for {
		buf, n, err := s.readKernel()
		if n > 0 {
			s.bytesUp.Add(uint64(n))
			ok := s.writeStack(&payload, buf[:n])
			chunks.Put(buf)
			if !ok {
				s.reset()
				return
			}
			continue
		}
		if err != nil {
			s.reset()
			return
		}
		break
	}
	s.finSent.Store(true)
	if err := s.ep.Shutdown(tcpip.ShutdownWrite); err != nil {
		s.reset()
		return
	}
	s.half()
	s.watchKernel()
}

// readKernel waits for bytes and returns them in a chunk, which the caller
// puts back; n is 0 at the end of the stream.
func (s *splice) readKernel() (buf *[chunk]byte, n int, err error) {
	werr := s.raw.Read(func(fd uintptr) bool {
		buf = chunks.Get().(*[chunk]byte)
		for {
			n, err = unix.Read(int(fd), buf[:])
			if !errors.Is(err, unix.EINTR) {
				break
			}
		}
		if n <= 0 {
			chunks.Put(buf)
			n = 0
		}
		return !errors.Is(err, unix.EAGAIN)
	})
	if werr != nil {
		return nil, 0, werr
	}
	return buf, n, err
}

func (s *splice) writeStack(payload *bytes.Reader, b []byte) bool {
	for len(b) > 0 {
		payload.Reset(b)
		n, err := s.ep.Write(payload, tcpip.WriteOptions{})
		b = b[n:]
		if err == nil {
			continue
		}
		if _, full := err.(*tcpip.ErrWouldBlock); !full {
			return false
		}
		select {
		case <-s.writable:
		case <-s.done:
			return false
		}
	}
	return true
}

// watchKernel waits, after the kernel side has sent its FIN, for a reset.
func (s *splice) watchKernel() {
	broken := false
	err := s.raw.Read(func(fd uintptr) bool {
		soerr, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		broken = err != nil || soerr != 0
		return broken
	})
	if broken || err != nil {
		s.reset()
	}
}

// down carries stack to kernel.
func (s *splice) down() {
	for {
		buf := chunks.Get().(*[chunk]byte)
		w := tcpip.SliceWriter(buf[:])
		res, err := s.ep.Read(&w, tcpip.ReadOptions{})
		if res.Count > 0 {
			s.bytesDown.Add(uint64(res.Count))
			_, werr := s.kernel.Write(buf[:res.Count])
			chunks.Put(buf)
			if werr != nil {
				s.reset()
				return
			}
			continue
		}
		chunks.Put(buf)
		switch err.(type) {
		case nil:
			continue
		case *tcpip.ErrWouldBlock:
			select {
			case <-s.readable:
				continue
			case <-s.done:
				return
			}
		case *tcpip.ErrClosedForReceive:
		default:
			s.reset()
			return
		}
		break
	}
	if err := s.kernel.CloseWrite(); err != nil {
		s.reset()
		return
	}
	s.half()
	s.watchStack()
}

// watchStack waits, after the stack side has received a FIN, for a reset. A
// reset in CLOSE-WAIT closes the endpoint without an error state; it differs
// from an orderly end in that no FIN of ours came before.
func (s *splice) watchStack() {
	for {
		state := tcp.EndpointState(s.ep.State())
		if state == tcp.StateError || state == tcp.StateClose && !s.finSent.Load() {
			s.reset()
			return
		}
		select {
		case <-s.readable:
		case <-s.done:
			return
		}
	}
}
