// SPDX-License-Identifier: Apache-2.0

package host

import (
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func asleep(t *testing.T, attr *syscall.SysProcAttr) int {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	cmd.SysProcAttr = attr
	if err := cmd.Start(); err != nil {
		t.Skipf("start a process as %+v: %v", attr, err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd.Process.Pid
}

func TestCapabilities(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("to have capabilities it must be root")
	}
	const wanted = 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW
	for _, c := range []struct {
		name string
		attr *syscall.SysProcAttr
		want bool
	}{
		{"root", nil, true},
		{"a user", &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}, false},
		// Who makes a user namespace has every capability in it.
		{"root of a namespace of its own", &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{Size: 1}}, GidMappings: []syscall.SysProcIDMap{{Size: 1}},
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			caps, err := capabilities(asleep(t, c.attr))
			if got := caps&wanted != 0; err != nil || got != c.want {
				t.Errorf("capabilities %#x, %v; may have foreign addresses: %v, want %v", caps, err, got, c.want)
			}
		})
	}
}
