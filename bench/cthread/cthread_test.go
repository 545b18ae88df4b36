// SPDX-License-Identifier: Apache-2.0

package cthread_test

import (
	"io"
	"net"
	"testing"
	"time"

	"pno/bench/cthread"
)

func TestConn(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	near, err := net.Dial("tcp", lis.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := lis.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	c, err := cthread.NewConn(near)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("ask")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 3)
	if _, err := io.ReadFull(far, buf); err != nil || string(buf) != "ask" {
		t.Fatalf("%q, %v", buf, err)
	}
	time.AfterFunc(20*time.Millisecond, func() { // it sleeps by then, most likely
		_, _ = far.Write([]byte("yes"))
		far.Close()
	})
	if _, err := io.ReadFull(c, buf); err != nil || string(buf) != "yes" {
		t.Fatalf("%q, %v", buf, err)
	}
	if n, err := c.Read(buf); n != 0 || err != io.EOF {
		t.Errorf("at the end %d, %v", n, err)
	}
	if _, err := cthread.NewConn(nil); err == nil {
		t.Error("no connection: taken over")
	}
}

func TestSleep(t *testing.T) {
	until := time.Now().Add(20 * time.Millisecond)
	cthread.Sleep(until)
	if time.Now().Before(until) {
		t.Error("awake too early")
	}
	cthread.Sleep(until) // it is over
}
