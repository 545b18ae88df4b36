// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"pno/dpu/netstack"
	"pno/dpu/session"
	"pno/dpu/shard"
	"pno/internal/config"
	"pno/internal/daemon"
	"pno/offload"
)

// Paths and addresses unless the configuration says otherwise.
const (
	defaultConfig  = "/etc/pno/dpud.yaml"
	defaultControl = "/run/pno/dpud.sock"
	defaultAdmin   = "/run/pno/dpud-admin.sock"
	defaultMetrics = "127.0.0.1:9464"
)

// none leaves an endpoint out.
const none = "none"

// settings is dpud's configuration file; deploy/dpud.yaml explains each key.
type settings struct {
	Link       linkSettings       `yaml:"link"`
	Addresses  []netip.Prefix     `yaml:"addresses"`
	Gateway    netip.Addr         `yaml:"gateway"`
	Routes     []route            `yaml:"routes"`
	Loopback   bool               `yaml:"loopback"`
	Shards     int                `yaml:"shards"`
	Cores      []int              `yaml:"cores"`
	Spin       config.Duration    `yaml:"spin"`
	Control    string             `yaml:"control"`
	Admin      string             `yaml:"admin"`
	Reflection bool               `yaml:"reflection"`
	Metrics    string             `yaml:"metrics"`
	Log        daemon.LogSettings `yaml:"log"`
	TCP        tcpSettings        `yaml:"tcp"`
	Moderation moderationSettings `yaml:"moderation"`
}

// Link drivers and modes.
const (
	driverXDP    = "af_xdp"
	driverPacket = "af_packet"
	driverAsavie = "asavie"

	modeAuto     = "auto"
	modeCopy     = "copy"
	modeZeroCopy = "zerocopy"
)

type linkSettings struct {
	Driver    string `yaml:"driver"`
	Interface string `yaml:"interface"`
	Queues    int    `yaml:"queues"`
	Mode      string `yaml:"mode"`
	Generic   bool   `yaml:"generic"`
	Replace   bool   `yaml:"replace"`
}

type route struct {
	To  netip.Prefix `yaml:"to"`
	Via netip.Addr   `yaml:"via"`
}

type tcpSettings struct {
	Congestion  string          `yaml:"congestion"`
	SACK        bool            `yaml:"sack"`
	RACK        bool            `yaml:"rack"`
	SendBuffer  config.Size     `yaml:"send_buffer"`
	SendMax     config.Size     `yaml:"send_buffer_max"`
	RecvBuffer  config.Size     `yaml:"recv_buffer"`
	RecvMax     config.Size     `yaml:"recv_buffer_max"`
	TimeWait    config.Duration `yaml:"time_wait"`
	MinRTO      config.Duration `yaml:"min_rto"`
	SynRetries  int             `yaml:"syn_retries"`
	Retransmits int             `yaml:"retransmits"`
}

type moderationSettings struct {
	MaxDelay  config.Duration `yaml:"max_delay"`
	MaxEvents int             `yaml:"max_events"`
}

func defaultSettings() settings {
	return settings{
		Link:    linkSettings{Driver: driverXDP, Mode: modeAuto},
		Spin:    config.Duration(shard.DefaultSpin),
		Control: defaultControl, Admin: defaultAdmin, Metrics: defaultMetrics,
		Log: daemon.DefaultLog(),
		TCP: tcpSettings{
			Congestion: netstack.DefaultCongestion, SACK: true, RACK: netstack.DefaultRACK,
			SendBuffer: netstack.DefaultSendBuffer, SendMax: netstack.DefaultSendMax,
			RecvBuffer: netstack.DefaultRecvBuffer, RecvMax: netstack.DefaultRecvMax,
			TimeWait: config.Duration(netstack.DefaultTimeWait), MinRTO: config.Duration(netstack.DefaultMinRTO),
			SynRetries: netstack.DefaultSynRetries, Retransmits: 15,
		},
		Moderation: moderationSettings{MaxDelay: config.Duration(session.DefaultMaxDelay), MaxEvents: session.DefaultMaxEvents},
	}
}

// Validate is called by the loader.
func (s *settings) Validate() error {
	return errors.Join(append(s.checkAddresses(),
		config.At("shards", within("shards", s.Shards, 0, offload.MaxShards)),
		config.At("cores", s.checkCores()),
		config.At("spin", between(s.Spin, 1, time.Second)),
		config.At("control", checkSocketPath(s.Control)),
		config.At("admin", checkSocketPath(s.Admin)),
		config.At("metrics", checkMetrics(s.Metrics)),
		s.checkDistinct(),
	)...)
}

func (s *settings) checkAddresses() (errs []error) {
	bad := func(key, format string, args ...any) {
		errs = append(errs, config.At(key, fmt.Errorf(format, args...)))
	}
	if s.Link.Interface == "" {
		bad("link", "no interface: name the port on the wire's side, as in link: {interface: p0}")
	}
	if len(s.Addresses) == 0 {
		bad("addresses", "no addresses: give those that the DPU has on the wire, as in addresses: [198.18.0.2/24]")
	}
	for i, a := range s.Addresses {
		if ip := a.Addr(); ip.IsUnspecified() || ip.IsMulticast() || ip.IsLoopback() {
			bad("addresses", "%s cannot be an own address", a)
		}
		if slices.ContainsFunc(s.Addresses[:i], func(b netip.Prefix) bool { return a.Addr() == b.Addr() }) {
			bad("addresses", "%s is given twice", a.Addr())
		}
	}
	if s.Gateway.IsValid() && !s.reaches(s.Gateway) {
		bad("gateway", "%s is on none of the networks of addresses", s.Gateway)
	}
	for _, r := range s.Routes {
		switch {
		case !r.To.IsValid() || !r.Via.IsValid():
			bad("routes", "a route needs both to and via")
		case r.To.Addr().Is4() != r.Via.Is4():
			bad("routes", "%s and its gateway %s are of different families", r.To, r.Via)
		case !s.reaches(r.Via):
			bad("routes", "%s is on none of the networks of addresses", r.Via)
		}
	}
	return errs
}

// checkCores holds the list against the number of shards.
func (s *settings) checkCores() error {
	for i, c := range s.Cores {
		if slices.Contains(s.Cores[:i], c) {
			return fmt.Errorf("core %d is given twice; each shard needs one of its own", c)
		}
	}
	if n := len(s.Cores); n > offload.MaxShards || n > 0 && s.Shards != 0 && s.Shards != n {
		return fmt.Errorf("%d cores for %d shards; give one for each, or leave shards out", n, s.Shards)
	}
	return nil
}

// reaches tells whether a gateway is on an own network.
func (s *settings) reaches(gateway netip.Addr) bool {
	return slices.ContainsFunc(s.Addresses, func(p netip.Prefix) bool {
		return p.Contains(gateway) && p.Addr() != gateway
	})
}

// checkDistinct refuses one socket for two servers.
func (s *settings) checkDistinct() error {
	if s.Control == s.Admin {
		return config.At("admin", fmt.Errorf("%s is the control socket too; each needs a path of its own", s.Admin))
	}
	return nil
}

// Validate is called by the loader.
func (s *linkSettings) Validate() error {
	var errs []error
	switch s.Driver {
	case driverXDP, driverPacket, driverAsavie:
	default:
		errs = append(errs, config.At("driver", fmt.Errorf("%q is not a driver; use %s, %s or %s", s.Driver, driverXDP, driverPacket, driverAsavie)))
	}
	switch s.Mode {
	case modeAuto, modeCopy:
	case modeZeroCopy:
		if s.Driver != driverXDP || s.Generic {
			errs = append(errs, config.At("mode", fmt.Errorf("%s needs driver %s and generic off", modeZeroCopy, driverXDP)))
		}
	default:
		errs = append(errs, config.At("mode", fmt.Errorf("%q is not a mode; use %s, %s or %s", s.Mode, modeAuto, modeCopy, modeZeroCopy)))
	}
	if s.Driver != driverXDP && (s.Generic || s.Replace) {
		errs = append(errs, config.At("driver", fmt.Errorf("generic and replace are settings of driver %s", driverXDP)))
	}
	// The kernel's limit of a name, IFNAMSIZ with its closing zero.
	if len(s.Interface) > 15 || strings.ContainsAny(s.Interface, "/ \t") {
		errs = append(errs, config.At("interface", fmt.Errorf("%q is not the name of an interface", s.Interface)))
	}
	errs = append(errs, config.At("queues", within("queues", s.Queues, 0, offload.MaxShards)))
	return errors.Join(errs...)
}

// Validate is called by the loader.
func (s *tcpSettings) Validate() error {
	const least, most = 4 << 10, 64 << 20
	buffer := func(key string, size, limit config.Size) error {
		switch {
		case size < least || size > most:
			return config.At(key, fmt.Errorf("%s, want %s to %s", size, config.Size(least), config.Size(most)))
		case size > limit:
			return config.At(key, fmt.Errorf("%s is more than its maximum, %s", size, limit))
		}
		return nil
	}
	var congestion error
	if s.Congestion != "cubic" && s.Congestion != "reno" {
		congestion = fmt.Errorf("%q is not a congestion control; use cubic or reno", s.Congestion)
	}
	return errors.Join(
		config.At("congestion", congestion),
		buffer("send_buffer_max", s.SendMax, most), buffer("recv_buffer_max", s.RecvMax, most),
		buffer("send_buffer", s.SendBuffer, s.SendMax), buffer("recv_buffer", s.RecvBuffer, s.RecvMax),
		config.At("time_wait", between(s.TimeWait, time.Millisecond, 4*time.Minute)),
		config.At("min_rto", between(s.MinRTO, time.Millisecond, 10*time.Second)),
		config.At("syn_retries", within("SYN retries", s.SynRetries, 1, 127)),
		config.At("retransmits", within("retransmissions", s.Retransmits, 1, 127)),
	)
}

// Validate is called by the loader.
func (s *moderationSettings) Validate() error {
	return errors.Join(
		config.At("max_delay", between(s.MaxDelay, 1, 10*time.Millisecond)),
		config.At("max_events", within("events", s.MaxEvents, 1, 1<<16)),
	)
}

func within(what string, n, least, most int) error {
	if n < least || n > most {
		return fmt.Errorf("%d %s, want %d to %d", n, what, least, most)
	}
	return nil
}

func between(d config.Duration, least, most time.Duration) error {
	if d.Std() < least || d.Std() > most {
		return fmt.Errorf("%v, want %v to %v", d, least, most)
	}
	return nil
}

// checkSocketPath knows the kernel's limit of 107 bytes.
func checkSocketPath(path string) error {
	if !strings.HasPrefix(path, "/") || len(path) > 107 {
		return fmt.Errorf("%q is not a full path of a Unix socket; it has at most 107 bytes", path)
	}
	return nil
}

func checkMetrics(addr string) error {
	if addr == none {
		return nil
	}
	_, port, err := net.SplitHostPort(addr)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return fmt.Errorf("%q is not an address with a port, as %s, nor %s", addr, defaultMetrics, none)
	}
	return nil
}
