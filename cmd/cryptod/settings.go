// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"pno/crypto/acl"
	"pno/crypto/agent"
	"pno/crypto/client"
	"pno/crypto/engine"
	"pno/crypto/engine/gosoft"
	"pno/crypto/engine/libcrypto"
	"pno/crypto/engine/remote"
	"pno/crypto/engine/simcard"
	"pno/crypto/mtls"
	"pno/crypto/wire"
	"pno/internal/config"
	"pno/internal/daemon"
)

// settings is the worker's configuration file; deploy/cryptod.yaml explains
// each key.
type settings struct {
	Name        string             `yaml:"name"`
	Listen      string             `yaml:"listen"`
	TLS         mtls.Files         `yaml:"tls"`
	ACL         string             `yaml:"acl"`
	Keys        keySettings        `yaml:"keys"`
	Engines     []engineSettings   `yaml:"engines"`
	Audit       auditSettings      `yaml:"audit"`
	Metrics     string             `yaml:"metrics"`
	Reload      config.Duration    `yaml:"reload"`
	Drain       config.Duration    `yaml:"drain"`
	MaxInflight int                `yaml:"max_inflight"`
	MaxTimeout  config.Duration    `yaml:"max_timeout"`
	Limits      limitSettings      `yaml:"limits"`
	LockMemory  string             `yaml:"lock_memory"`
	Reflection  bool               `yaml:"reflection"`
	Log         daemon.LogSettings `yaml:"log"`
}

type keySettings struct {
	Dir string `yaml:"dir"`
	KEK string `yaml:"kek"`
}

type auditSettings struct {
	Path    string          `yaml:"path"`
	MaxSize config.Size     `yaml:"max_size"`
	Keep    int             `yaml:"keep"`
	Summary config.Duration `yaml:"summary"`
}

type limitSettings struct {
	Connections       int `yaml:"connections"`
	ClientConnections int `yaml:"client_connections"`
	Streams           int `yaml:"streams"`
	ClientStreams     int `yaml:"client_streams"`
}

// Validate is called by the loader.
func (l *limitSettings) Validate() error {
	for _, f := range []struct {
		key string
		n   int
	}{{"connections", l.Connections}, {"client_connections", l.ClientConnections}, {"streams", l.Streams}, {"client_streams", l.ClientStreams}} {
		if f.n < 1 || f.n > 1<<20 {
			return config.At(f.key, fmt.Errorf("%d, want 1 to 1048576", f.n))
		}
	}
	return nil
}

type engineSettings struct {
	Kind      string                 `yaml:"kind"`
	Threads   int                    `yaml:"threads"`
	Queue     int                    `yaml:"queue"`
	Provider  string                 `yaml:"provider"`
	PropQuery string                 `yaml:"propquery"`
	Heap      config.Size            `yaml:"heap"`
	Latency   config.Duration        `yaml:"latency"`
	Rate      float64                `yaml:"rate"`
	Cluster   *agent.ClusterSettings `yaml:"cluster"`
}

func defaultSettings() settings {
	name, err := os.Hostname()
	if err != nil {
		name = "cryptod"
	}
	return settings{
		Name: name, Listen: ":8443",
		TLS: mtls.Files{Cert: "/etc/pno/cryptod.crt", Key: "/etc/pno/cryptod.key", CA: "/etc/pno/ca.crt"},
		ACL: "/etc/pno/crypto-acl.yaml", Keys: keySettings{Dir: "/var/lib/pno/keys", KEK: "credential:kek"},
		Engines: []engineSettings{{Kind: "auto"}}, Audit: auditSettings{Path: "/var/log/pno/crypto-audit.log", MaxSize: 256 << 20, Keep: 32, Summary: config.Duration(10 * time.Second)},
		Metrics: "127.0.0.1:9466", Reload: config.Duration(time.Second), Drain: config.Duration(10 * time.Second),
		MaxInflight: wire.MaxInflight, MaxTimeout: config.Duration(10 * time.Second), LockMemory: "try",
		Limits: limitSettings{Connections: 4096, ClientConnections: 64, Streams: 8192, ClientStreams: 64}, Log: daemon.DefaultLog(),
	}
}

func loadSettings(file string) (settings, error) {
	set := defaultSettings()
	if err := config.Load(file, &set); err != nil {
		return set, err
	}
	_, err := acl.Load(set.ACL)
	return set, err
}

// Validate is called by the loader.
func (s *settings) Validate() error {
	switch {
	case s.Keys.Dir == "" || s.Keys.KEK == "":
		return errors.New("keys needs dir and kek")
	case len(s.Engines) == 0:
		return config.At("engines", errors.New("a worker without an engine computes nothing"))
	case s.Reload.Std() < 10*time.Millisecond || s.Reload.Std() > 4*time.Second:
		return config.At("reload", fmt.Errorf("%v, want 10ms to 4s: what is revoked must not be used for longer than 5s", s.Reload))
	case s.Drain < 0 || s.Drain.Std() > 10*time.Minute:
		return config.At("drain", fmt.Errorf("%v, want up to 10m", s.Drain))
	case s.Audit.Keep < 0:
		return config.At("audit", fmt.Errorf("keep %d files, want 0 (all) or more", s.Audit.Keep))
	case s.Audit.Summary.Std() < 100*time.Millisecond || s.Audit.Summary.Std() > time.Hour:
		return config.At("audit", fmt.Errorf("summary every %v, want 100ms to 1h", s.Audit.Summary))
	case s.MaxInflight < 1 || s.MaxInflight > 1<<16:
		return config.At("max_inflight", fmt.Errorf("%d operations, want 1 to 65536", s.MaxInflight))
	case s.MaxTimeout.Std() < time.Millisecond || s.MaxTimeout.Std() > time.Minute:
		return config.At("max_timeout", fmt.Errorf("%v, want 1ms to 1m", s.MaxTimeout))
	}
	if err := checkLockMemory(s.LockMemory); err != nil {
		return err
	}
	return checkMetrics(s.Metrics)
}

func checkLockMemory(mode string) error {
	switch mode {
	case "try", "required", "off":
		return nil
	}
	return config.At("lock_memory", fmt.Errorf("%q says nothing; use try, required or off", mode))
}

func checkMetrics(addr string) error {
	if addr == "none" {
		return nil
	}
	if a, err := netip.ParseAddrPort(addr); err != nil || !a.Addr().IsLoopback() {
		return config.At("metrics", fmt.Errorf("%q is not a loopback address with a port, as 127.0.0.1:9466, nor none", addr))
	}
	return nil
}

// Validate is called by the loader.
func (e *engineSettings) Validate() error {
	switch e.Kind {
	case "auto", "go", "simcard":
	case "libcrypto":
		if !libcrypto.Available {
			return config.At("kind", errors.New("this program was built without cgo; use auto or go"))
		}
	case "remote":
		if e.Cluster == nil {
			return errors.New("a remote engine needs cluster: workers and worker_identity")
		}
	default:
		return config.At("kind", fmt.Errorf("%q is not an engine; use auto, libcrypto, go, remote or simcard", e.Kind))
	}
	if e.Provider+e.PropQuery != "" && (e.Kind == "go" || e.Kind == "remote" || !libcrypto.Available) {
		return fmt.Errorf("provider and propquery are of libcrypto, not of a %s engine in this program", e.Kind)
	}
	if e.Threads < 0 || e.Threads > 1024 {
		return config.At("threads", fmt.Errorf("%d threads, want 0 (one a processor) to 1024", e.Threads))
	}
	if e.Queue < 0 || e.Queue > 1<<20 {
		return config.At("queue", fmt.Errorf("%d operations, want 0 (the default) to 1048576", e.Queue))
	}
	if n := uint64(e.Heap); n > 0 && (n < libcrypto.MinHeap || n > libcrypto.MaxHeap || n&(n-1) != 0) {
		return config.At("heap", fmt.Errorf("a heap of %d bytes, want 0 (what the limits suggest) or a power of two from 1MiB to 128MiB", n))
	}
	return nil
}

// opener is the engine that the settings describe.
func (e *engineSettings) opener(id *mtls.Identity) func(engine.Sink) (engine.Engine, error) {
	// auto is libcrypto if it is built in: on any processor it signs fastest with
	// RSA, and it keeps keys in locked memory.
	software := func(sink engine.Sink) (engine.Engine, error) {
		if libcrypto.Available && e.Kind != "go" {
			return libcrypto.New(libcrypto.Config{Threads: e.Threads, Queue: e.Queue, Provider: e.Provider, PropQuery: e.PropQuery, Heap: int(e.Heap)}, sink)
		}
		return gosoft.New(gosoft.Config{Threads: e.Threads, Queue: e.Queue}, sink), nil
	}
	return func(sink engine.Sink) (engine.Engine, error) {
		switch e.Kind {
		case "simcard":
			return simcard.New(simcard.Config{Ring: e.Queue, Latency: e.Latency.Std(), Rate: e.Rate}, software, sink)
		case "remote":
			cluster, err := client.NewCluster(e.Cluster.Config(id, nil))
			if err != nil {
				return nil, err
			}
			c, err := client.New(0, cluster)
			if err != nil {
				return nil, err
			}
			return remote.New(c, e.Queue, sink), nil
		}
		return software(sink)
	}
}
