// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var (
	modeFlag = flag.String("mode", "offload", "offload: through the DPU; kernel: the control run without it")
	keepFlag = flag.Bool("keep", false, "keep configuration and log files")
)

// roleEnv says what this process is: nothing for the parent that go test
// started, otherwise one of the roles. workEnv is the directory of all files.
const (
	roleEnv = "PNO_E2E_ROLE"
	workEnv = "PNO_E2E_DIR"

	roleSuite = "suite"
	roleLoad  = "load"
)

func TestMain(m *testing.M) {
	switch os.Getenv(roleEnv) {
	case roleLoad:
		loadMain()
	case roleSuite:
		os.Exit(m.Run())
	default:
		flag.Parse()
		os.Exit(supervise())
	}
}

// supervise runs the suite as a child and inherits every process that loses
// its parent, so that none can escape.
func supervise() int {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "e2e: become the subreaper:", err)
		return 1
	}
	dir, err := os.MkdirTemp("", "pno-e2e-")
	if err == nil {
		err = os.Chmod(dir, 0o755) // workers of the proxies are not root
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e: make the work directory:", err)
		return 1
	}

	// The thread that forks must live as long as we do: its end would be taken
	// for ours by the death signal.
	runtime.LockOSThread()
	suite := exec.Command(os.Args[0], os.Args[1:]...)
	suite.Env = append(os.Environ(), roleEnv+"="+roleSuite, workEnv+"="+dir)
	suite.Stdin, suite.Stdout, suite.Stderr = os.Stdin, os.Stdout, os.Stderr
	suite.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := suite.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e: start the suite:", err)
		return 1
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT)
	go func() {
		for s := range signals {
			_ = suite.Process.Signal(s)
		}
	}()

	code := reapUntil(suite.Process.Pid)
	if left := append(endChildren(), removeNamespaces(suite.Process.Pid)...); len(left) > 0 {
		fmt.Printf("e2e: the suite left behind: %s\n", strings.Join(left, ", "))
		code = max(code, 1)
	}
	if *keepFlag {
		fmt.Println("e2e: files are kept in", dir)
	} else if err := os.RemoveAll(dir); err != nil {
		fmt.Println("e2e: remove files:", err)
		code = max(code, 1)
	}
	return code
}

// reapUntil collects orphans until process pid has ended, and returns its exit
// code.
func reapUntil(pid int) int {
	for {
		var ws syscall.WaitStatus
		got, err := syscall.Wait4(-1, &ws, 0, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			fmt.Fprintln(os.Stderr, "e2e: wait for the suite:", err)
			return 1
		case got == pid && ws.Signaled():
			fmt.Println("e2e: the suite was ended by", ws.Signal())
			return 1
		case got == pid:
			return ws.ExitStatus()
		}
	}
}

// endChildren kills what is left below us and names it. A process that is
// ending anyway is given the time to.
func endChildren() (names []string) {
	for try := 0; ; try++ {
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); err != nil || pid <= 0 {
				break
			}
		}
		left := descendants(os.Getpid())
		if len(left) == 0 || try == 200 {
			return names
		}
		if try >= 20 {
			for pid, comm := range left {
				if try == 20 {
					names = append(names, fmt.Sprintf("process %d (%s)", pid, comm))
				}
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// descendants returns the processes below root by number, with their names.
func descendants(root int) map[int]string {
	table := processTable()
	below := map[int]string{}
	for pid, one := range table {
		for p := one.parent; p > 1; p = table[p].parent {
			if p == root {
				below[pid] = one.comm
				break
			}
		}
	}
	return below
}

// children returns the processes that have pid as their parent.
func children(pid int) (pids []int) {
	for child, one := range processTable() {
		if one.parent == pid {
			pids = append(pids, child)
		}
	}
	return pids
}

type process struct {
	parent int
	comm   string
}

// processTable reads /proc, without the dead.
func processTable() map[int]process {
	table := map[int]process{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		content, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		// pid (comm) state ppid …, and comm may hold anything.
		s := string(content)
		open, end := strings.IndexByte(s, '('), strings.LastIndexByte(s, ')')
		if open < 0 || end < open {
			continue
		}
		pid, _ := strconv.Atoi(strings.TrimSpace(s[:open]))
		fields := strings.Fields(s[end+1:])
		if len(fields) < 2 || fields[0] == "Z" {
			continue
		}
		parent, _ := strconv.Atoi(fields[1])
		table[pid] = process{parent, s[open+1 : end]}
	}
	return table
}

// removeNamespaces removes the namespaces of a suite that could not do so
// itself, and names them.
func removeNamespaces(pid int) (names []string) {
	left, _ := filepath.Glob(fmt.Sprintf("/run/netns/pno-%d-*", pid))
	for _, path := range left {
		names = append(names, "namespace "+filepath.Base(path))
		_ = unix.Unmount(path, unix.MNT_DETACH)
		_ = os.Remove(path)
	}
	return names
}
