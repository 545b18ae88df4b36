// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func TestVethPairCarriesTCP(t *testing.T) {
	a, b := New(t, "a"), New(t, "b")
	VethPair(t, a, "eth0", b, "eth0")
	a.AddrAdd("eth0", "198.18.0.1/24")
	b.AddrAdd("eth0", "198.18.0.2/24")
	b.AddrAdd("lo", "198.18.9.1/32")
	a.RouteAdd("198.18.9.0/24", "198.18.0.2")

	l, err := b.Listen("tcp", "198.18.9.1:7000")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err == nil {
			io.WriteString(c, "hello")
			c.Close()
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := a.DialContext(ctx, "tcp", "198.18.9.1:7000")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got, err := io.ReadAll(c)
	if err != nil || string(got) != "hello" {
		t.Fatalf("read %q, %v", got, err)
	}
}

func TestProgramsRunInside(t *testing.T) {
	n := New(t, "run")
	want, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	direct := exec.Command("readlink", "/proc/self/ns/net")
	direct.Stdout = &out
	if err := n.Start(direct); err != nil {
		t.Fatal(err)
	}
	if err := direct.Wait(); err != nil {
		t.Fatal(err)
	}
	wrapped := n.Run("readlink", "/proc/self/ns/net")
	named, err := exec.Command("ip", "netns", "exec", n.Name(), "readlink", "/proc/self/ns/net").Output()
	if err != nil {
		t.Fatalf("ip netns exec: %v", err)
	}
	if out.String() == want+"\n" || out.String() != wrapped || wrapped != string(named) {
		t.Fatalf("home %s, Start %s, Run %s, ip netns exec %s", want, out.String(), wrapped, named)
	}
}

func TestDoComesBack(t *testing.T) {
	n := New(t, "do")
	var inside []net.Interface
	n.Do(func() { inside, _ = net.Interfaces() })
	if len(inside) != 1 || inside[0].Name != "lo" {
		t.Fatalf("interfaces inside: %v", inside)
	}
	before, _ := os.Readlink("/proc/self/ns/net")
	after, _ := os.Readlink("/proc/thread-self/ns/net")
	if before != after {
		t.Fatalf("thread stayed in %s, process is in %s", after, before)
	}
}

func TestCleanupLeavesNothing(t *testing.T) {
	var path string
	t.Run("inner", func(t *testing.T) { path = New(t, "gone").Path() })
	if _, err := os.Stat(path); path != "" && !os.IsNotExist(err) {
		t.Fatalf("%s is still there: %v", path, err)
	}
}
