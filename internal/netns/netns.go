// SPDX-License-Identifier: Apache-2.0

// Package netns makes private network namespaces for tests: veth pairs,
// addresses, routes and programs that run inside, all removed by t.Cleanup.
//
// A namespace is named pno-<pid>-<n>-<name> and bound under /run/netns, so
// that `ip netns exec` reaches it while a test is held in a debugger. What a
// killed run left behind is removed by the next run that calls New.
//
// New, Do and the configuring methods belong to the test's own goroutine,
// since they end a failed test with t.Fatal. DialContext, Listen and Start may
// be called from any goroutine.
package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"pno/internal/ethtool"
)

// runDir is where iproute2 looks for named namespaces.
const runDir = "/run/netns"

const namePrefix = "pno-"

var (
	sequence  atomic.Uint32
	sweepOnce sync.Once
)

// NS is one network namespace. It exists until the test that made it ends.
type NS struct {
	t    testing.TB
	name string
	fd   int
}

// New makes a namespace with its loopback up. Without root, or
// under user-mode emulation, the test is skipped.
func New(t testing.TB, name string) *NS {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	if emulated() {
		t.Skip("network namespaces need the ethtool ioctl, which user-mode emulation does not have")
	}
	sweepOnce.Do(sweep)

	n := &NS{t: t, fd: -1}
	n.name = fmt.Sprintf("%s%d-%d-%s", namePrefix, os.Getpid(), sequence.Add(1), name)
	if err := create(n.Path()); err != nil {
		t.Fatalf("make network namespace %s: %v", n.name, err)
	}
	t.Cleanup(n.remove)

	fd, err := unix.Open(n.Path(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("open network namespace %s: %v", n.name, err)
	}
	n.fd = fd
	n.LinkUp("lo")
	return n
}

// emulated tells whether the system calls pass through qemu-user, which knows
// neither the ioctls nor the socket families that a test in here is about.
var emulated = sync.OnceValue(func() bool {
	c, err := ethtool.Open()
	if err != nil {
		return false // and the test will tell why
	}
	defer c.Close()
	_, err = c.Get("lo", unix.ETHTOOL_GTXCSUM)
	return errors.Is(err, unix.ENOSYS)
})

// Name is the unique name, as `ip netns exec` takes it.
func (n *NS) Name() string { return n.name }

// Path is the file the namespace is bound to.
func (n *NS) Path() string { return filepath.Join(runDir, n.name) }

// Do runs fn on a thread that is inside the namespace. Sockets fn opens stay
// in the namespace; goroutines fn starts do not begin there.
func (n *NS) Do(fn func()) {
	n.t.Helper()
	if err := n.do(func() error { fn(); return nil }); err != nil {
		n.t.Fatal(err)
	}
}

func (n *NS) do(fn func() error) error {
	return away(func() error {
		if err := unix.Setns(n.fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", n.name, err)
		}
		return fn()
	})
}

// away runs fn, which may change the thread's network namespace, and changes
// it back. When the way back fails the thread stays locked, so that the
// runtime ends it with its goroutine instead of handing it, in the wrong
// namespace, to another. Ending the thread always would be simpler, but the
// main thread cannot end, and /proc/self/net shows the main thread's namespace.
func away(fn func() error) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open own network namespace: %w", err)
	}
	defer home.Close()
	defer func() {
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
	}()
	return fn()
}

// Command is exec.CommandContext for a program inside the namespace; it keeps
// its own pid, so that signals reach the program itself. The environment
// passes through nsenter: where that matters (LD_PRELOAD), use Start.
func (n *NS) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + n.Path(), "--", name}, args...)...)
}

// Start starts any command inside the namespace with no program in between.
func (n *NS) Start(cmd *exec.Cmd) error {
	return n.do(cmd.Start)
}

// Run runs a short program inside, fails the test if it fails, and returns
// its output.
func (n *NS) Run(name string, args ...string) string {
	n.t.Helper()
	out, err := n.Command(context.Background(), name, args...).CombinedOutput()
	if err != nil {
		n.t.Fatalf("run %s %s in %s: %v\n%s", name, strings.Join(args, " "), n.name, err, out)
	}
	return string(out)
}

// DialContext connects from inside the namespace to a literal IP address. It
// fits http.Transport and net.Dialer users.
func (n *NS) DialContext(ctx context.Context, network, address string) (c net.Conn, err error) {
	err = n.do(func() error {
		c, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return c, err
}

// Listen listens inside the namespace.
func (n *NS) Listen(network, address string) (l net.Listener, err error) {
	err = n.do(func() error {
		l, err = net.Listen(network, address)
		return err
	})
	return l, err
}

// HTTPClient returns a client whose connections start in the namespace; its
// idle connections are closed when the test ends.
func (n *NS) HTTPClient() *http.Client {
	tr := &http.Transport{DialContext: n.DialContext}
	n.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// create makes a namespace and binds it to path, which keeps it alive.
func create(path string) error {
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return err
	}
	f.Close()

	err = away(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind to %s: %w", path, err)
		}
		return nil
	})
	if err != nil {
		os.Remove(path)
	}
	return err
}

func (n *NS) remove() {
	if n.fd >= 0 {
		unix.Close(n.fd)
	}
	if err := removePath(n.Path()); err != nil {
		n.t.Errorf("remove network namespace %s: %v", n.name, err)
	}
}

func removePath(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && err != unix.EINVAL {
		return fmt.Errorf("unmount: %w", err)
	}
	return os.Remove(path)
}

// sweep removes namespaces whose test process was killed before its cleanup.
func sweep() {
	paths, _ := filepath.Glob(filepath.Join(runDir, namePrefix+"*"))
	for _, p := range paths {
		field, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(p), namePrefix), "-")
		pid, err := strconv.Atoi(field)
		if err != nil || unix.Kill(pid, 0) != unix.ESRCH {
			continue
		}
		// A parallel run may sweep the same file; whoever loses has nothing to do.
		_ = removePath(p)
	}
}

// link finds an interface; the caller is inside the namespace.
func link(name string) (netlink.Link, error) {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("find interface %s: %w", name, err)
	}
	return l, nil
}
