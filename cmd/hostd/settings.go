// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"time"

	"pno/crypto/agent"
	"pno/host"
	"pno/internal/attach"
	"pno/internal/config"
	"pno/internal/daemon"
	"pno/offload"
)

// settings is hostd's configuration file; deploy/hostd.yaml explains each key.
type settings struct {
	Listen      string             `yaml:"listen"`
	SocketMode  fileMode           `yaml:"socket_mode"`
	DPU         string             `yaml:"dpu"`
	DPUWait     config.Duration    `yaml:"dpu_wait"`
	Policy      string             `yaml:"policy"`
	RunPolicies bool               `yaml:"run_policies"`
	State       string             `yaml:"state"`
	Admin       string             `yaml:"admin"`
	Metrics     string             `yaml:"metrics"`
	Log         daemon.LogSettings `yaml:"log"`
	Session     sessionSettings    `yaml:"session"`
	Limits      limitSettings      `yaml:"limits"`
	Agent       *agent.Settings    `yaml:"agent"` // nil: hostd runs no key agent
}

type sessionSettings struct {
	Channels int             `yaml:"channels"`
	H2DRing  config.Size     `yaml:"h2d_ring"`
	D2HRing  config.Size     `yaml:"d2h_ring"`
	RxWindow config.Size     `yaml:"rx_window"`
	TxWindow config.Size     `yaml:"tx_window"`
	Spin     config.Duration `yaml:"spin"`
}

type limitSettings struct {
	Sessions int `yaml:"sessions"`
	PerUser  int `yaml:"per_user"`
}

func defaultSettings() settings {
	l := offload.DefaultLayout(1)
	return settings{
		Listen: attach.DefaultPath, SocketMode: 0o666, DPU: host.DefaultDPU, DPUWait: config.Duration(time.Second),
		RunPolicies: true, Admin: "/run/pno/hostd-admin.sock", Metrics: "127.0.0.1:9465",
		Log: daemon.DefaultLog(),
		Session: sessionSettings{
			Channels: l.Channels, H2DRing: config.Size(l.H2DSize), D2HRing: config.Size(l.D2HSize),
			RxWindow: config.Size(l.RxWindow), TxWindow: config.Size(l.TxWindow), Spin: config.Duration(20 * time.Microsecond),
		},
		Limits: limitSettings{Sessions: offload.MaxSessions, PerUser: 256},
	}
}

// fileMode is written in octal, quoted or not: 0660.
type fileMode os.FileMode

func (m *fileMode) UnmarshalText(b []byte) error {
	v, err := strconv.ParseUint(string(b), 8, 32)
	if err != nil || v > 0o777 {
		return fmt.Errorf("%q is not a file mode; write it in octal, as 0660", b)
	}
	*m = fileMode(v)
	return nil
}

// Validate is called by the loader.
func (s *settings) Validate() error {
	for key, path := range map[string]string{"listen": s.Listen, "dpu": s.DPU, "admin": s.Admin} {
		if err := checkSocketPath(path); err != nil {
			return config.At(key, err)
		}
	}
	if s.Metrics != "none" {
		a, err := netip.ParseAddrPort(s.Metrics)
		if err != nil || !a.Addr().IsLoopback() {
			return config.At("metrics", fmt.Errorf("%q is not a loopback address with a port, as 127.0.0.1:9465, nor none", s.Metrics))
		}
	}
	return nil
}

// state is where to keep it, empty for nowhere. By default it goes with the
// attach socket, so that two agents never share it.
func (s *settings) state() string {
	switch s.State {
	case "":
		return s.Listen + ".d"
	case "none":
		return ""
	}
	return s.State
}

// checkSocketPath knows the kernel's limit of 107 bytes.
func checkSocketPath(path string) error {
	if path == "" || len(path) > 107 {
		return fmt.Errorf("%q is not a path of a Unix socket; it has 1 to 107 bytes", path)
	}
	return nil
}

// Validate is called by the loader.
func (s *sessionSettings) Validate() error {
	for key, size := range map[string]config.Size{"h2d_ring": s.H2DRing, "d2h_ring": s.D2HRing, "rx_window": s.RxWindow, "tx_window": s.TxWindow} {
		if size > offload.MaxRingSize {
			return config.At(key, fmt.Errorf("%s is more than the largest ring, %s", size, config.Size(offload.MaxRingSize)))
		}
	}
	if s.Spin.Std() > time.Second {
		return config.At("spin", errors.New("a thread that polls longer than 1s burns its core"))
	}
	return s.layout().Check()
}

func (s *sessionSettings) layout() offload.Layout {
	return offload.Layout{
		Channels: s.Channels, Shards: 1, H2DSize: uint32(s.H2DRing), D2HSize: uint32(s.D2HRing),
		RxWindow: uint32(s.RxWindow), TxWindow: uint32(s.TxWindow),
	}
}

// Validate is called by the loader.
func (s *limitSettings) Validate() error {
	if s.Sessions < 1 || s.Sessions > offload.MaxSessions {
		return config.At("sessions", fmt.Errorf("%d sessions, want 1 to %d", s.Sessions, offload.MaxSessions))
	}
	if s.PerUser < 1 {
		return config.At("per_user", errors.New("want at least 1"))
	}
	return nil
}
