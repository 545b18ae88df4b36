// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"pno/host/policy"
	"pno/internal/attach"
	"pno/internal/target"
	"pno/offload"
)

const runLong = `Run CMD with its sockets offloaded through this machine's hostd. pno checks what
it can, says what is wrong, and then becomes CMD: same process, same exit status.

With --policy, CMD and its children get the policy of FILE instead of the
machine's. hostd reads FILE whenever one of them attaches, so it must stay, and
belong to the user of the process, or to root and be readable by all. A child
of fork has its parent's policy.

Programs that cannot be offloaded are refused: statically linked ones,
set-user-ID ones, and Go programs that do not import package pno/shim. If there is no DPU, hostd's policy decides:
with "no_dpu: kernel" CMD runs with the kernel's sockets, and pno says so.

The exit status is CMD's, 125 if a check failed, 126 if CMD cannot be run and
127 if it is not found.`

const runExample = `  pno run -- nginx -g 'daemon off;'
  pno run --policy proxy.yaml -- haproxy -f haproxy.cfg`

const probeTimeout = 5 * time.Second

func newRunCmd() *cobra.Command {
	var hostd, policyFile string
	c := &cobra.Command{
		Use:     "run [flags] -- CMD [ARG…]",
		Short:   "Run a program attached to this machine's hostd",
		Long:    runLong,
		Example: runExample,
		RunE: func(_ *cobra.Command, args []string) error {
			return runAttached(hostd, policyFile, args)
		},
	}
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return &statusError{exitOwn, fmt.Errorf("%w (see pno run --help)", err)}
	})
	listen := attach.DefaultPath
	if env := os.Getenv("PNO_HOSTD"); env != "" {
		listen = env
	}
	fl := c.Flags()
	fl.SetInterspersed(false) // what follows CMD is CMD's
	fl.StringVar(&hostd, "hostd", listen, "attach socket of hostd; PNO_HOSTD sets the default")
	fl.StringVar(&policyFile, "policy", "", "policy `FILE` for CMD and its children")
	return c
}

// runAttached returns only if something is wrong.
func runAttached(hostd, policyFile string, args []string) error {
	own := func(err error) error { return &statusError{exitOwn, err} }
	if len(args) == 0 {
		return own(errors.New("no program given: pno run [flags] -- CMD [ARG…]"))
	}
	path, err := exec.LookPath(args[0])
	if err != nil {
		code := exitNotFound
		if errors.Is(err, fs.ErrPermission) {
			code = exitCannotRun
		}
		return &statusError{code, fmt.Errorf("run %s: %w", args[0], errors.Unwrap(err))}
	}
	if err := target.Check(path); err != nil {
		return &statusError{exitCannotRun, err}
	}
	library, err := findLibrary()
	if err != nil {
		return own(err)
	}
	if hostd, err = filepath.Abs(hostd); err != nil {
		return own(err)
	}
	env := []string{"LD_PRELOAD=" + preload(library), "PNO_HOSTD=" + hostd}
	if policyFile != "" {
		if policyFile, err = filepath.Abs(policyFile); err != nil {
			return own(err)
		}
		if _, err := policy.Load(policyFile); err != nil {
			return own(err)
		}
		env = append(env, "PNO_POLICY_FILE="+policyFile)
	} else {
		policyFile = os.Getenv("PNO_POLICY_FILE") // of a pno run around this one
	}
	if err := probe(hostd, args[0], policyFile); err != nil {
		return own(err)
	}
	err = unix.Exec(path, args, mergeEnv(os.Environ(), env))
	return &statusError{exitCannotRun, fmt.Errorf("run %s: %w", path, err)}
}

// probe asks hostd whether the program would get a session.
func probe(hostd, name, policyFile string) error {
	c, err := attach.Dial(hostd, probeTimeout)
	if err != nil {
		return fmt.Errorf("hostd does not answer on %s: %w; start hostd, or name its socket with --hostd", hostd, err)
	}
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(probeTimeout))
	m := &attach.Hello{ABIMajor: offload.VersionMajor, ABIMinor: offload.VersionMinor, Flags: attach.HelloProbe}
	attach.SetText(m.Name[:], filepath.Base(name))
	if len(policyFile) >= attach.PolicyLen {
		return fmt.Errorf("the policy's name is longer than %d bytes: %s", attach.PolicyLen-1, policyFile)
	}
	attach.SetText(m.Policy[:], policyFile)
	if err := c.Send(m, 1); err != nil {
		return err
	}
	p, err := c.Recv()
	if err != nil {
		return fmt.Errorf("hostd on %s did not answer as expected: %w; is it of the same release?", hostd, err)
	}
	defer p.Close()
	switch m := p.Msg.(type) {
	case *attach.Ack:
		return nil
	case *attach.Refused:
		text := attach.Text(m.Text[:])
		if unix.Errno(m.Err) == unix.ENETDOWN && policy.Action(m.Fallback) == policy.Kernel {
			fmt.Fprintf(os.Stderr, "pno run: %s; %s uses the kernel's sockets, as the policy says\n", text, filepath.Base(name))
			return nil
		}
		return fmt.Errorf("hostd on %s refuses: %s", hostd, text)
	}
	return fmt.Errorf("hostd on %s answered with a %T; is it of the same release?", hostd, p.Msg)
}
