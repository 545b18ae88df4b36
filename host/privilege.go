// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"pno/host/policy"
)

// mayBeTransparent decides whether a process may use addresses that are not the
// DPU's (IP_TRANSPARENT): as in the kernel it must have CAP_NET_ADMIN or
// CAP_NET_RAW, here in hostd's own user namespace, and the policy in force must
// name it; a policy of its own (pno run --policy) can only narrow that.
//
// The process cannot lie about its capabilities, and who has these needs no
// false name. They are looked at when it attaches: programs give them up later.
func (s *Server) mayBeTransparent(pid int, name string, own *policy.Policy) bool {
	s.mu.Lock()
	inForce := s.policy
	s.mu.Unlock()
	if !inForce.MayBeTransparent(name) || !own.MayBeTransparent(name) {
		return false
	}
	caps, err := capabilities(pid)
	if err != nil {
		s.log.Warn("capabilities of a process are unknown; it gets no foreign addresses", "pid", pid, "reason", err)
		return false
	}
	return caps&(1<<unix.CAP_NET_ADMIN|1<<unix.CAP_NET_RAW) != 0
}

// capabilities returns those that a process has, or may take up, over what
// belongs to hostd's user namespace.
func capabilities(pid int) (uint64, error) {
	var ours, theirs unix.Stat_t
	if err := unix.Stat("/proc/self/ns/user", &ours); err != nil {
		return 0, fmt.Errorf("look at hostd's user namespace: %w", err)
	}
	if err := unix.Stat(fmt.Sprintf("/proc/%d/ns/user", pid), &theirs); err != nil {
		return 0, fmt.Errorf("look at the user namespace of process %d: %w", pid, err)
	}
	if ours.Ino != theirs.Ino || ours.Dev != theirs.Dev {
		return 0, nil
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if hex, ok := strings.CutPrefix(sc.Text(), "CapPrm:"); ok {
			return strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
		}
	}
	return 0, fmt.Errorf("no capabilities in the status of process %d", pid)
}
