// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"pno/host/policy"
	"pno/internal/attach"
	"pno/offload"
)

// DefaultDPU is dpud's control socket.
const DefaultDPU = "/run/pno/dpud.sock"

// Config of a Server. The zero value of a field means its default.
type Config struct {
	Listen     string      // attach socket; default attach.DefaultPath
	SocketMode os.FileMode // of the attach socket; default 0600
	DPU        string      // dpud's control socket; default DefaultDPU
	Policy     *policy.Policy
	Log        *slog.Logger
	State      string // directory for what a restarted hostd needs; none if empty

	Layout    offload.Layout // geometry of new sessions; Shards is the DPU's
	SpinNanos uint32         // how long a shim thread polls before it sleeps

	MaxSessions int           // default and most: offload.MaxSessions
	MaxPerUser  int           // sessions of one uid that is not root; default 256
	BypassEvery time.Duration // how often processes are looked at that may pass the offload by; default 10 s
	DPUWait     time.Duration // how long an attach waits for a DPU that is not there yet; default 1 s
	RunPolicies bool          // honour the policy file that a process names (pno run --policy)
}

// Times of the attach protocol, and limits that no configuration needs.
const (
	helloTimeout = 5 * time.Second  // from connection to HELLO
	sendTimeout  = 5 * time.Second  // for a process to take an answer
	execGrace    = 10 * time.Second // for a new image to take its sockets over
	orphanGrace  = 10 * time.Second // for a child to say FORKED on a dead parent's connection

	maxRegistered = 1 << 17 // sockets registered by one session
	maxGrants     = 1024    // forks of one session that have not attached

	defaultSpin = 20 * time.Microsecond
)

func (c Config) withDefaults() (Config, error) {
	set := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	set(&c.Listen, attach.DefaultPath)
	set(&c.DPU, DefaultDPU)
	if c.SocketMode == 0 {
		c.SocketMode = 0o600
	}
	if c.Policy == nil {
		c.Policy = policy.Default()
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Layout == (offload.Layout{}) {
		c.Layout = offload.DefaultLayout(1)
	}
	if c.SpinNanos == 0 {
		c.SpinNanos = uint32(defaultSpin)
	}
	if c.MaxSessions == 0 {
		c.MaxSessions = offload.MaxSessions
	}
	if c.MaxPerUser == 0 {
		c.MaxPerUser = 256
	}
	if c.BypassEvery == 0 {
		c.BypassEvery = bypassEvery
	}
	if c.DPUWait == 0 {
		c.DPUWait = time.Second
	}
	l := c.Layout
	l.Shards = 1
	if err := l.Check(); err != nil {
		return c, fmt.Errorf("hostd configuration: %w", err)
	}
	if c.MaxSessions < 1 || c.MaxSessions > offload.MaxSessions {
		return c, fmt.Errorf("hostd configuration: %d sessions, want 1 to %d", c.MaxSessions, offload.MaxSessions)
	}
	if c.MaxPerUser < 1 || c.DPUWait < 0 || c.BypassEvery < 0 {
		return c, errors.New("hostd configuration: negative limit")
	}
	return c, nil
}
