// SPDX-License-Identifier: Apache-2.0

package rawconn_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"pno/crypto/rawconn"
)

// pair is two ends of a connection over TCP, the first of them wrapped.
func pair(t *testing.T) (net.Conn, *net.TCPConn) {
	t.Helper()
	w, far := ends(t, "tcp", "127.0.0.1:0")
	return w, far.(*net.TCPConn)
}

func ends(t *testing.T, network, addr string) (w, far net.Conn) {
	t.Helper()
	lis, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	if far, err = net.Dial(network, lis.Addr().String()); err != nil {
		t.Fatal(err)
	}
	near, err := lis.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if w, err = rawconn.Wrap(near); err != nil {
		t.Fatal(err)
	}
	if w == near {
		t.Fatalf("a connection of %s is not wrapped", network)
	}
	limit := time.Now().Add(time.Minute)
	if err := errors.Join(w.SetDeadline(limit), far.SetDeadline(limit)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close(); far.Close() })
	return w, far
}

// More than the socket's buffers hold, both ways, then the end.
func TestCopies(t *testing.T) {
	w, far := pair(t)
	data := make([]byte, 20<<20)
	if _, err := rand.Read(data); err != nil {
		t.Fatal(err)
	}
	sent := make(chan error, 2)
	go func() {
		n, err := w.Write(data)
		if err == nil && n != len(data) {
			err = io.ErrShortWrite
		}
		sent <- err
	}()
	got := make([]byte, len(data))
	if _, err := io.ReadFull(far, got); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("written: %v, equal %v", err, bytes.Equal(got, data))
	}
	go func() {
		_, err := far.Write(data)
		sent <- errors.Join(err, far.CloseWrite())
	}()
	read, err := io.ReadAll(w)
	if err != nil || !bytes.Equal(read, data) {
		t.Fatalf("read %d bytes: %v", len(read), err)
	}
	for range 2 {
		if err := <-sent; err != nil {
			t.Error(err)
		}
	}
	if n, err := w.Read(nil); n != 0 || err != nil {
		t.Errorf("read of nothing: %d, %v", n, err)
	}
}

// What io.Copy looks for first is not what package net does.
func TestIOCopy(t *testing.T) {
	w, far := pair(t)
	if n, err := io.Copy(w, strings.NewReader("to there")); n != 8 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	if _, err := far.Write([]byte("and back")); err != nil {
		t.Fatal(err)
	}
	if err := far.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	var back bytes.Buffer
	if n, err := io.Copy(&back, w); n != 8 || err != nil || back.String() != "and back" {
		t.Fatalf("%d, %v, %q", n, err, back.String())
	}
	there := make([]byte, 8)
	if _, err := io.ReadFull(far, there); err != nil || string(there) != "to there" {
		t.Fatalf("%q, %v", there, err)
	}
}

// Who waits is woken by a deadline and by Close, and errors are those of package net.
func TestErrors(t *testing.T) {
	buf := make([]byte, 1)
	t.Run("deadline", func(t *testing.T) {
		w, _ := pair(t)
		if err := w.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		var e net.Error
		if _, err := w.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &e) || !e.Timeout() {
			t.Errorf("got %v", err)
		}
	})
	t.Run("close", func(t *testing.T) {
		w, _ := pair(t)
		ended := make(chan error, 1)
		go func() {
			_, err := w.Read(buf)
			ended <- err
		}()
		w.Close()
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Errorf("got %v", err)
		}
		if _, err := w.Write(buf); !errors.Is(err, net.ErrClosed) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("reset", func(t *testing.T) {
		w, far := pair(t)
		if err := far.SetLinger(0); err != nil {
			t.Fatal(err)
		}
		far.Close()
		var e *net.OpError
		if _, err := w.Read(buf); !errors.Is(err, syscall.ECONNRESET) || !errors.As(err, &e) || e.Op != "read" {
			t.Errorf("read: %v", err)
		}
		if _, err := w.Write(buf); !errors.Is(err, syscall.EPIPE) || !errors.As(err, &e) || e.Op != "write" {
			t.Errorf("write: %v", err)
		}
	})
}

// Packets of a Unix socket stay whole.
func TestPackets(t *testing.T) {
	w, far := ends(t, "unixpacket", filepath.Join(t.TempDir(), "s"))
	for _, packet := range []string{"one", "and another"} {
		if _, err := w.Write([]byte(packet)); err != nil {
			t.Fatal(err)
		}
		if _, err := far.Write([]byte(packet)); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, 64)
	for _, packet := range []string{"one", "and another"} {
		for _, c := range []net.Conn{w, far} {
			if n, err := c.Read(buf); err != nil || string(buf[:n]) != packet {
				t.Errorf("%q, %v, want %q", buf[:n], err, packet)
			}
		}
	}
	far.Close()
	if n, err := w.Read(buf); n != 0 || err != io.EOF {
		t.Errorf("at the end %d, %v", n, err)
	}
	var e *net.OpError
	if _, err := w.Write(buf); !errors.Is(err, syscall.EPIPE) || !errors.As(err, &e) || e.Net != "unixpacket" {
		t.Errorf("after the end: %v", err)
	}
}

// What has no descriptor stays what it is.
func TestOthers(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if got, err := rawconn.Wrap(a); got != a || err != nil {
		t.Errorf("got %v, %v", got, err)
	}
}

// Each way costs no memory.
func TestAllocations(t *testing.T) {
	w, far := pair(t)
	buf := make([]byte, 64)
	n := testing.AllocsPerRun(200, func() {
		if _, err := w.Write(buf); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(far, buf); err != nil {
			t.Fatal(err)
		}
		if _, err := far.Write(buf); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(w, buf); err != nil {
			t.Fatal(err)
		}
	})
	if n > 0.5 {
		t.Errorf("%.1f allocations", n)
	}
}
