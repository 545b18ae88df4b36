// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	proxyCore = "0" // the proxy and hostd
	otherCore = "1" // the DPU and the load

	startLimit = 20 * time.Second // for a program to come up
)

// topology is the namespaces, processes and files of one benchmark.
type topology struct {
	dir    string
	bin    string
	prefix string
	netns  []string
	procs  []*exec.Cmd

	receivers []string // kernel threads that do a client's receive work
}

// newTopology makes the scratch folder of a benchmark that needs these programs,
// besides those that every one does.
func newTopology(bin string, tools ...string) (*topology, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("a benchmark makes network namespaces: run it as root")
	}
	for _, tool := range append([]string{"ip", "tc", "taskset"}, tools...) {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, fmt.Errorf("%s is not installed: run scripts/deps.sh test", tool)
		}
	}
	dir, err := os.MkdirTemp("", "pno-bench-")
	if err != nil {
		return nil, fmt.Errorf("make a scratch folder: %w", err)
	}
	// nginx's workers drop to another user and must still reach their files.
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, fmt.Errorf("open the scratch folder to workers: %w", err)
	}
	return &topology{dir: dir, bin: bin, prefix: fmt.Sprintf("pnob%d", os.Getpid())}, nil
}

// Close ends every process, last started first, and removes what was made. A
// second Close does nothing.
func (t *topology) Close() {
	for i := len(t.procs) - 1; i >= 0; i-- {
		c := t.procs[i]
		_ = c.Process.Signal(syscall.SIGTERM)
		timer := time.AfterFunc(5*time.Second, func() { _ = c.Process.Kill() })
		_ = c.Wait()
		timer.Stop()
	}
	for _, ns := range t.netns {
		_ = exec.Command("ip", "netns", "del", ns).Run()
	}
	_ = os.RemoveAll(t.dir)
	t.procs, t.netns = nil, nil
}

func run(args ...string) error {
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("run %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// namespace makes a network namespace with its loopback up.
func (t *topology) namespace(name string) (string, error) {
	ns := t.prefix + "-" + name
	if err := run("ip", "netns", "add", ns); err != nil {
		return "", err
	}
	t.netns = append(t.netns, ns)
	return ns, run("ip", "-n", ns, "link", "set", "lo", "up")
}

// veth joins two namespaces; each end is called eth0. An empty address leaves
// an end without one.
func (t *topology) veth(nsA, addrA, nsB, addrB string) error {
	a, b := t.prefix+"a", t.prefix+"b"
	steps := [][]string{
		{"ip", "link", "add", a, "type", "veth", "peer", "name", b},
		{"ip", "link", "set", a, "netns", nsA, "name", "eth0"},
		{"ip", "link", "set", b, "netns", nsB, "name", "eth0"},
	}
	for _, e := range []struct{ ns, addr string }{{nsA, addrA}, {nsB, addrB}} {
		if e.addr != "" {
			steps = append(steps, []string{"ip", "-n", e.ns, "addr", "add", e.addr, "dev", "eth0"})
		}
		steps = append(steps, []string{"ip", "-n", e.ns, "link", "set", "eth0", "up"})
	}
	for _, s := range steps {
		if err := run(s...); err != nil {
			return err
		}
	}
	return nil
}

// thread gives the receive work of client's end of a veth pair to a kernel
// thread on the core that the sender runs on too. Left alone, it runs inside
// whoever sends to that end, and is charged to them.
func (t *topology) thread(client, sender string) error {
	before := napiThreads()
	for _, s := range [][]string{
		{"ip", "netns", "exec", client, "ethtool", "-K", "eth0", "gro", "on"},
		// veth polls only for frames of a sender that leaves segmentation to
		// nobody.
		{"ip", "netns", "exec", sender, "ethtool", "-K", "eth0", "tso", "off"},
		{"ip", "netns", "exec", client, "sh", "-c", "echo 1 > /sys/class/net/eth0/threaded"},
	} {
		if err := run(s...); err != nil {
			return err
		}
	}
	for pid := range napiThreads() {
		if !before[pid] {
			t.receivers = append(t.receivers, pid)
		}
	}
	return t.pinReceivers(otherCore)
}

// pinReceivers moves the threads that thread has made.
func (t *topology) pinReceivers(core string) error {
	for _, pid := range t.receivers {
		if err := run("taskset", "-p", "-c", core, pid); err != nil {
			return err
		}
	}
	return nil
}

// lossless has a namespace's end of a veth pair wait when the other end's ring
// of 256 frames is full, as a card does: without a queueing discipline the rest
// of a burst is dropped.
func (t *topology) lossless(sender string) error {
	return run("tc", "-n", sender, "qdisc", "replace", "dev", "eth0", "root", "pfifo_fast")
}

// napiThreads are the process numbers of the kernel threads that receive.
func napiThreads() map[string]bool {
	names, _ := filepath.Glob("/proc/[0-9]*/comm")
	threads := map[string]bool{}
	for _, name := range names {
		if b, _ := os.ReadFile(name); strings.HasPrefix(string(b), "napi/") {
			threads[filepath.Base(filepath.Dir(name))] = true
		}
	}
	return threads
}

// start runs a program inside a namespace, pinned to a core, unless these are
// empty; its output goes to a log of its own name.
func (t *topology) start(ns, core, name string, args ...string) (*exec.Cmd, error) {
	logfile, err := os.Create(filepath.Join(t.dir, name+".log"))
	if err != nil {
		return nil, fmt.Errorf("open a log for %s: %w", name, err)
	}
	defer logfile.Close()
	if core != "" {
		args = append([]string{"taskset", "-c", core}, args...)
	}
	if ns != "" {
		args = append([]string{"ip", "netns", "exec", ns}, args...)
	}
	c := exec.Command(args[0], args[1:]...)
	c.Stdout, c.Stderr = logfile, logfile
	if err := c.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	t.procs = append(t.procs, c)
	return c, nil
}

// log returns the end of a program's log, to be shown with an error.
func (t *topology) log(name string) string {
	b, _ := os.ReadFile(filepath.Join(t.dir, name+".log"))
	return strings.TrimSpace(string(b[max(0, len(b)-2000):]))
}

// waitSocket waits until a Unix socket of a just started program is there.
func (t *topology) waitSocket(ctx context.Context, name, path string) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s did not come up: %w\n%s", name, ctx.Err(), t.log(name))
		case <-time.After(20 * time.Millisecond):
		}
	}
}
