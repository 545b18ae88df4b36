// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"pno/host/policy"
	"pno/internal/attach"
	"pno/internal/config"
)

// policyFor returns the policy of a process that says HELLO: the file that it
// names (pno run --policy sets PNO_POLICY_FILE), its parent's if that had one
// and the child came by fork, else the one in force.
func (s *Server) policyFor(peer attach.Peer, file, token string) (p *policy.Policy, own bool, err error) {
	s.mu.Lock()
	p = s.policy
	if g := s.grants[token]; token != "" && g != nil && g.parent.runPolicy != nil {
		p = g.parent.runPolicy
		s.mu.Unlock()
		return p, true, nil
	}
	s.mu.Unlock()
	if file == "" {
		return p, false, nil
	}
	if !s.cfg.RunPolicies {
		return p, false, fmt.Errorf("policy %s: this hostd takes no policies of programs (run_policies: false)", file)
	}
	data, err := readOwned(file, peer.UID)
	if err != nil {
		return p, false, fmt.Errorf("policy %s: %w", file, err)
	}
	mine, err := policy.Parse(file, data)
	if err != nil {
		return p, false, err
	}
	return mine, true, nil
}

// readOwned reads a file on behalf of a user. hostd may run as root, and tells
// the user what is wrong with the file: it must be one that he may read.
func readOwned(file string, uid int) ([]byte, error) {
	if !filepath.IsAbs(file) {
		return nil, errors.New("the name is not absolute")
	}
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), file)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, errors.New("not a regular file")
	}
	public := st.Uid == 0 && st.Mode&0o004 != 0
	if uid != 0 && int(st.Uid) != uid && !public {
		return nil, fmt.Errorf("it belongs to user %d, the process to user %d", st.Uid, uid)
	}
	return io.ReadAll(io.LimitReader(f, config.MaxFile+1))
}
