// SPDX-License-Identifier: Apache-2.0

package dpu_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pno/dpu/netstack"
	"pno/dpu/report"
	"pno/offload"
	"pno/sim/wire"
)

func pattern(seed uint64, n int) []byte {
	b := make([]byte, n)
	rng := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = rng.Read(b)
	return b
}

// bulk moves n bytes each way at once over a connection and compares.
func bulk(t *testing.T, s *hsock, c net.Conn, n int) {
	t.Helper()
	up, down := pattern(1, n), pattern(2, n)
	var wg sync.WaitGroup
	fail := make(chan error, 4)
	check := func(what string, got, want []byte, err error) {
		if err != nil {
			fail <- fmt.Errorf("%s: %w", what, err)
		} else if sha256.Sum256(got) != sha256.Sum256(want) {
			fail <- fmt.Errorf("%s: hash differs", what)
		}
	}
	wg.Go(func() {
		if err := s.write(up); err != nil {
			fail <- err
		}
	})
	wg.Go(func() {
		if _, err := c.Write(down); err != nil {
			fail <- err
		}
	})
	wg.Go(func() {
		got, err := s.readN(n)
		check("host", got, down, err)
	})
	wg.Go(func() {
		got := make([]byte, n)
		_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
		_, err := io.ReadFull(c, got)
		check("remote", got, up, err)
	})
	wg.Wait()
	close(fail)
	for err := range fail {
		t.Error(err)
	}
}

func TestBulk(t *testing.T) {
	small := testLayout(1)
	small.H2DSize, small.D2HSize, small.RxWindow, small.TxWindow = 65536, 65536, 32768, 32768
	for _, c := range []struct {
		name  string
		l     offload.Layout
		size  int
		o     rigOptions
		sleep bool
	}{
		{"default windows", testLayout(1), 10 << 20, rigOptions{}, false},
		{"small rings", small, 4 << 20, rigOptions{}, false},
		{"sleeping host", testLayout(1), 10 << 20, rigOptions{}, true},
		// A busy machine may leave an acknowledgement lying for longer than the
		// least timeout, and then nothing was lost.
		{"full link", testLayout(1), 4 << 20, rigOptions{limit: 256, tcp: netstack.TCP{MinRTO: time.Minute}}, false},
		{"loss and delay", testLayout(1), 1 << 20, rigOptions{seed: 3, faults: [2]wire.Faults{
			{Loss: 0.01, Delay: time.Millisecond}, {Loss: 0.01, Delay: time.Millisecond},
		}}, false},
	} {
		once := func(t *testing.T) (report.Stats, time.Duration) {
			r := newRig(t, c.o)
			h := newHost(t, r.agent, c.l)
			h.do(func() { h.sleep = c.sleep })
			l := h.listen(0, dpuAddr+":80")
			conn := r.remote.dial(t, dpuAddr+":80")
			s := l.accept()
			begin := time.Now()
			bulk(t, s, conn, c.size)
			took := time.Since(begin)
			t.Logf("%d bytes each way in %v", c.size, took.Round(time.Millisecond))
			d := r.d.Stats()
			if d.Sessions.Violators != 0 {
				t.Errorf("violations: %v", d.Sessions)
			}
			return d, took
		}
		t.Run(c.name, func(t *testing.T) {
			const starved = 2 * time.Second // many times as long as it takes
			again, stalls := uint64(0), 0
			for range 3 { // a machine that stalls is taken for a loss by TCP, but not each time
				d, took := once(t)
				if c.o.limit == 0 {
					return
				}
				if again = sentAgain(t, d); again == 0 {
					return
				}
				if took > starved {
					stalls++
				}
			}
			if stalls > 0 {
				t.Logf("not judged: %d segments were sent again, but the machine is too busy for TCP's timers", again)
				return
			}
			t.Errorf("%d segments were sent again", again)
		})
	}
}

// sentAgain is how many segments were retransmitted; none was dropped on the
// way to the link.
func sentAgain(t *testing.T, d report.Stats) (n uint64) {
	t.Helper()
	if n := d.Links[0].TxDropped; n != 0 {
		t.Errorf("the link dropped %d packets", n)
	}
	for _, c := range d.Netstack {
		switch {
		case c.Name == "tcp_retransmits":
			n = c.Value
		case c.Name == "link_tx_no_buffer" && c.Value != 0:
			t.Errorf("%s is %d, want 0", c.Name, c.Value)
		}
	}
	return n
}

// A round trip of nearly nothing once made flows stall.
func TestLoopbackBulk(t *testing.T) {
	r := newRig(t, rigOptions{})
	h := newHost(t, r.agent, testLayout(1))
	for _, addr := range []string{"127.0.0.1:80", "[::1]:80", dpuAddr + ":81"} {
		t.Run(addr, func(t *testing.T) {
			l := h.listen(0, addr)
			a := h.connect(0, addr, "")
			if a.errno != 0 {
				t.Fatalf("connect: errno %d", a.errno)
			}
			b := l.accept()
			data := pattern(5, 8<<20)
			go func() {
				_ = a.write(data)
				a.shutdown(1)
			}()
			got, err := b.readN(len(data))
			if err != nil || !bytes.Equal(got, data) {
				t.Fatalf("%d bytes of %d, %v", len(got), len(data), err)
			}
			if n, err := b.read(make([]byte, 1)); n != 0 || err != nil {
				t.Errorf("after the end: %d, %v", n, err)
			}
			a.close(0)
			b.close(0)
		})
	}
}

func TestSlowReaderDoesNotStallOthers(t *testing.T) {
	r := newRig(t, rigOptions{})
	h := newHost(t, r.agent, testLayout(1))
	l := h.listen(0, dpuAddr+":80")
	slow := r.remote.dial(t, dpuAddr+":80")
	ss := l.accept()
	go func() { _, _ = slow.Write(make([]byte, 4<<20)) }()
	h.until("slow socket's window", func() bool { return len(ss.rx) >= 32768 })
	fast := r.remote.dial(t, dpuAddr+":80")
	bulk(t, l.accept(), fast, 2<<20)
}

// A host that answers what it reads reports consumption by its Sends alone. The
// rest of what came, for which there was no credit, has to follow then.
func TestSendOpensTheWindow(t *testing.T) {
	r := newRig(t, rigOptions{})
	h := newHost(t, r.agent, testLayout(1))
	l := h.listen(0, dpuAddr+":80")
	c := r.remote.dial(t, dpuAddr+":80")
	s := l.accept()
	window := int(h.l.RxWindow)
	if _, err := c.Write(pattern(1, window+1000)); err != nil {
		t.Fatal(err)
	}
	h.until("the window is full", func() bool { return len(s.rx) == window })
	time.Sleep(100 * time.Millisecond) // the rest waits in the stack, and nothing else happens
	h.do(func() {
		s.consumed = uint64(window)
		s.emit(offload.OpSend, 0, 0, uint32(window), []byte{1})
		s.tx++
	})
	h.until("the rest has come", func() bool { return len(s.rx) == window+1000 })
}

func TestClose(t *testing.T) {
	r := newRig(t, rigOptions{})
	h := newHost(t, r.agent, testLayout(1))
	l := h.listen(0, dpuAddr+":80")
	read := func(c net.Conn) error {
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		_, err := io.ReadAll(c)
		return err
	}
	t.Run("orderly", func(t *testing.T) {
		c := r.remote.dial(t, dpuAddr+":80")
		s := l.accept()
		_ = s.write([]byte("bye"))
		s.close(0)
		if err := read(c); err != nil {
			t.Errorf("read: %v", err)
		}
	})
	t.Run("flushes what the stack had no room for", func(t *testing.T) {
		c := r.remote.dial(t, dpuAddr+":80")
		s := l.accept()
		data := pattern(9, 64<<10)
		go func() {
			time.Sleep(10 * time.Millisecond)
		}()
		if err := s.write(data); err != nil {
			t.Fatal(err)
		}
		s.close(0)
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		got, err := io.ReadAll(c)
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	})
	t.Run("reset wanted", func(t *testing.T) {
		c := r.remote.dial(t, dpuAddr+":80")
		l.accept().close(offload.FlagCloseReset)
		if err := read(c); err == nil {
			t.Error("no reset")
		}
	})
	t.Run("unread data", func(t *testing.T) {
		c := r.remote.dial(t, dpuAddr+":80")
		s := l.accept()
		_, _ = c.Write([]byte("unread"))
		h.until("data", func() bool { return len(s.rx) == 6 })
		s.close(0)
		if err := read(c); err == nil {
			t.Error("no reset")
		}
	})
	t.Run("peer resets", func(t *testing.T) {
		c := r.remote.dial(t, dpuAddr+":80")
		s := l.accept()
		_, _ = c.Write([]byte("x"))
		h.until("data", func() bool { return len(s.rx) == 1 })
		_ = s.write([]byte("unread there"))
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err != nil { // the rest is there, too
			t.Fatal(err)
		}
		_ = c.Close() // with unread data: reset
		h.until("error", func() bool { return s.errno == 104 })
		s.close(0)
	})
	t.Run("peer half-closes", func(t *testing.T) {
		c := r.remote.dial(t, dpuAddr+":80")
		s := l.accept()
		_ = c.(interface{ CloseWrite() error }).CloseWrite()
		h.until("fin", func() bool { return s.fin })
		_ = s.write([]byte("still there"))
		s.close(0)
		if err := read(c); err != nil {
			t.Error(err)
		}
	})
	h.until("no socket left", func() bool { return true })
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		if st := r.d.Stats(); st.Sockets.Open == 1 && st.Sockets.Orphans == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("sockets left: %+v", r.d.Stats().Sockets)
}

func TestConnectErrors(t *testing.T) {
	r := newRig(t, rigOptions{})
	h := newHost(t, r.agent, testLayout(1))
	for _, c := range []struct {
		name, peer, local string
		errno             uint32
	}{
		{"refused", remoteAddr + ":1", "", 111},
		{"refused on loopback", "127.0.0.1:1", "", 111},
		{"no route", "203.0.113.1:80", "", 101},
		{"no neighbour", "198.18.77.77:80", "", 113},
		{"group", "239.10.20.30:80", "", 101},
		{"IPv6 group", "[ff0e::1]:80", "", 101},
		{"broadcast", "255.255.255.255:80", "", 101},
		{"foreign source", remoteAddr + ":80", "192.0.2.1:0", 99},
		{"mixed families", "[2001:2::9]:80", "198.18.0.2:0", 97},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := h.connect(0, c.peer, c.local)
			if s.errno != c.errno {
				t.Errorf("errno %d, want %d", s.errno, c.errno)
			}
			s.close(0)
		})
	}
}

func TestBindErrors(t *testing.T) {
	r := newRig(t, rigOptions{})
	h := newHost(t, r.agent, testLayout(1))
	h.listen(0, dpuAddr+":80")
	for _, c := range []struct {
		name, addr string
		flags      uint32
		errno      uint32
	}{
		{"in use", dpuAddr + ":80", 0, 98},
		{"in use by a listener", dpuAddr + ":80", offload.BindReuseAddr, 98},
		{"wildcard over it", "0.0.0.0:80", 0, 98},
		{"foreign", "192.0.2.1:80", 0, 99},
		{"free", "0.0.0.0:81", 0, 0},
		{"any port", "0.0.0.0:0", 0, 0},
		{"v6", "[::]:82", 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, errno := h.bind(0, c.addr, c.flags)
			if errno != c.errno {
				t.Errorf("errno %d, want %d", errno, c.errno)
			}
			if errno == 0 && s.pair.Local.Port == 0 {
				t.Error("no port")
			}
			s.close(0)
		})
	}
}

func TestSocketOptions(t *testing.T) {
	r := newRig(t, rigOptions{})
	h := newHost(t, r.agent, testLayout(1))
	l := h.listen(0, dpuAddr+":80")
	const tcpLevel, socketLevel = 6, 1
	if errno := l.setOpt(tcpLevel, 4 /* TCP_KEEPIDLE */, 77); errno != 0 {
		t.Errorf("keep-alive idle: errno %d", errno)
	}
	r.remote.dial(t, dpuAddr+":80")
	s := l.accept()
	for _, c := range []struct {
		name        string
		level, opt  uint32
		value, want uint32
		errno       uint32
	}{
		{"no delay", tcpLevel, 1, 1, 1, 0},
		{"keep-alive", socketLevel, 9, 1, 1, 0},
		{"user timeout", tcpLevel, 18, 5000, 5000, 0},
		{"fast open is not honoured", tcpLevel, 23, 1, 0, 92},
		{"not-sent low-water mark is not honoured", tcpLevel, 25, 1, 0, 92},
		{"transparent takes a privilege", 0, 19, 1, 0, 1},
		{"keep-alive count out of range", tcpLevel, 6, 4000, 0, 22},
	} {
		t.Run(c.name, func(t *testing.T) {
			if errno := s.setOpt(c.level, c.opt, c.value); errno != c.errno {
				t.Fatalf("errno %d, want %d", errno, c.errno)
			}
			if c.errno != 0 {
				return
			}
			o, errno := s.getOpt(c.level, c.opt)
			if errno != 0 || uint32(o.Val[0])|uint32(o.Val[1])<<8 != c.want {
				t.Errorf("value % x, errno %d", o.Val[:4], errno)
			}
		})
	}
	if o, errno := s.getOpt(tcpLevel, 4); errno != 0 || o.Val[0] != 77 {
		t.Errorf("inherited option: % x, errno %d", o.Val[:4], errno)
	}
	if o, errno := s.getOpt(tcpLevel, 11 /* TCP_INFO */); errno != 0 || o.Len != 232 || o.Val[0] != 1 {
		t.Errorf("TCP_INFO: len %d, state %d, errno %d", o.Len, o.Val[0], errno)
	}
}

// Who has shut both halves reads what had come, in whosever memory it waits;
// whoever goes on sending to it is told that nobody listens.
func TestDataAfterBothHalves(t *testing.T) {
	l := testLayout(1)
	l.RxWindow = 32768
	r := newRig(t, rigOptions{})
	h := newHost(t, r.agent, l)
	listener := h.listen(0, dpuAddr+":80")
	conn := r.remote.dial(t, dpuAddr+":80")
	s := listener.accept()
	early := pattern(1, 100<<10)
	if _, err := conn.Write(early); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		list := r.d.Sockets()
		k := slices.IndexFunc(list, func(c report.Socket) bool { return c.Handle == s.handle })
		if k >= 0 && list[k].RxUnread+list[k].RxQueued == uint64(len(early)) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("waiting on the DPU: %+v", list)
		}
	}
	s.shutdown(2)
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("the peer reads %d, %v; want the end", n, err)
	}
	got, err := s.readN(len(early))
	if err != nil || !bytes.Equal(got, early) {
		t.Fatalf("%d bytes of what came before, %v", len(got), err)
	}
	if _, err := conn.Write([]byte("late")); err != nil {
		t.Fatal(err)
	}
	h.until("reset", func() bool { return s.errno == uint32(unix.ECONNRESET) })
	if n, err := s.read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("after the reset: %d, %v", n, err)
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := conn.Write([]byte("later")); err != nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the peer is not told")
		}
	}
}
