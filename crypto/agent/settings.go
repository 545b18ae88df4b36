// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/user"
	"slices"
	"strconv"
	"time"

	"pno/crypto/acl"
	"pno/crypto/client"
	"pno/crypto/engine"
	"pno/crypto/engine/gosoft"
	"pno/crypto/keystore"
	"pno/crypto/mtls"
	"pno/internal/config"
	"pno/internal/unixsock"
)

// Settings is an agent as a configuration file describes it; deploy/agent.yaml
// explains each key. The same section stands in the file of `cryptod agent` and
// in that of a program which runs the agent inside itself.
type Settings struct {
	Listen      []SocketSettings  `yaml:"listen"`
	TLS         mtls.Files        `yaml:"tls"`
	Timeout     config.Duration   `yaml:"timeout"`
	MaxInflight int               `yaml:"max_inflight"`
	MaxConns    int               `yaml:"max_connections"`
	Clusters    []ClusterSettings `yaml:"clusters"`
	Local       *LocalSettings    `yaml:"local"`
}

// SocketSettings is one socket.
type SocketSettings struct {
	Path string `yaml:"path"`
	User string `yaml:"user"`
}

// ClusterSettings is one cluster; the first is asked first.
type ClusterSettings struct {
	Name           string              `yaml:"name"`
	Workers        []string            `yaml:"workers"`
	WorkerIdentity string              `yaml:"worker_identity"`
	Verify         client.Verification `yaml:"verify"`
	Streams        int                 `yaml:"streams"`
	HedgeAfter     config.Duration     `yaml:"hedge_after"`
	Attempts       int                 `yaml:"attempts"`
	Wait           config.Duration     `yaml:"wait"`
	Stall          config.Duration     `yaml:"stall"`
	Eject          config.Duration     `yaml:"eject"`
}

// LocalSettings is the sealed copies of keys.
type LocalSettings struct {
	Dir  string          `yaml:"dir"`
	KEK  string          `yaml:"kek"`
	Idle config.Duration `yaml:"idle"`
}

// Validate is called by the configuration loader.
func (s *Settings) Validate() error {
	switch {
	case len(s.Listen) == 0:
		return errors.New("the agent needs listen: a list of sockets, as [{path: " + DefaultPath + "}]")
	case len(s.Clusters) == 0 && s.Local == nil:
		return errors.New("the agent needs clusters, or local with sealed copies of keys")
	case len(s.Clusters) > 0 && s.TLS == (mtls.Files{}):
		return errors.New("the agent needs tls: cert, key and ca")
	case s.Timeout < 0 || s.Timeout.Std() > time.Minute:
		return config.At("timeout", fmt.Errorf("%v, want up to 1m", s.Timeout))
	case s.MaxInflight < 0 || s.MaxInflight > 1<<16:
		return config.At("max_inflight", fmt.Errorf("%d operations, want up to 65536", s.MaxInflight))
	case s.MaxConns < 0 || s.MaxConns > 1<<16:
		return config.At("max_connections", fmt.Errorf("%d connections, want up to 65536", s.MaxConns))
	}
	return nil
}

// Validate is called by the configuration loader.
func (s *SocketSettings) Validate() error {
	if s.Path == "" || len(s.Path) > unixsock.MaxPath {
		return config.At("path", fmt.Errorf("%q is not a path of a Unix socket; it has 1 to %d bytes", s.Path, unixsock.MaxPath))
	}
	return nil
}

// Validate is called by the configuration loader.
func (s *ClusterSettings) Validate() error {
	switch s.Verify {
	case "", client.VerifyAll, client.VerifyRSA, client.VerifyOff:
	default:
		return config.At("verify", fmt.Errorf("%q says nothing; use all, rsa or off", s.Verify))
	}
	switch {
	case len(s.Workers) == 0:
		return errors.New("a cluster needs workers: host:port, or one dns:///name:port")
	case s.WorkerIdentity == "":
		return errors.New("a cluster needs worker_identity: the URI of its workers' certificates, which may end in a star")
	case acl.CheckPattern(s.WorkerIdentity) != nil:
		return config.At("worker_identity", acl.CheckPattern(s.WorkerIdentity))
	case s.Streams < 0 || s.Streams > 64:
		return config.At("streams", fmt.Errorf("%d streams, want up to 64", s.Streams))
	case s.Attempts < 0 || s.Attempts > 16:
		return config.At("attempts", fmt.Errorf("%d attempts, want up to 16", s.Attempts))
	}
	return checkTimes(
		setTime{"hedge_after", s.HedgeAfter, 0, time.Minute},
		setTime{"wait", s.Wait, 0, time.Minute},
		setTime{"stall", s.Stall, 10 * time.Millisecond, time.Minute},
		setTime{"eject", s.Eject, 0, time.Hour})
}

// setTime is a time that a file may set, or leave at 0 for the default.
type setTime struct {
	key         string
	value       config.Duration
	least, most time.Duration
}

func checkTimes(times ...setTime) error {
	for _, t := range times {
		if d := t.value.Std(); d != 0 && (d < t.least || d > t.most) {
			return config.At(t.key, fmt.Errorf("%v, want %v to %v", d, t.least, t.most))
		}
	}
	return nil
}

// Config is what the settings mean to package client.
func (s *ClusterSettings) Config(id *mtls.Identity, log *slog.Logger) client.Config {
	return client.Config{Name: s.Name, Identity: id, Workers: s.Workers, WorkerIdentity: s.WorkerIdentity,
		Verify: s.Verify, Streams: s.Streams, HedgeAfter: s.HedgeAfter.Std(), Attempts: s.Attempts, Wait: s.Wait.Std(),
		Stall: s.Stall.Std(), Eject: s.Eject.Std(), Log: log}
}

// Validate is called by the configuration loader.
func (s *LocalSettings) Validate() error {
	if s.Dir == "" || s.KEK == "" {
		return errors.New("local needs dir and kek; the kek must come from elsewhere than this disk")
	}
	return checkTimes(setTime{"idle", s.Idle, 10 * time.Millisecond, 24 * time.Hour})
}

// uid is that of a user by name or number; -1 for none.
func uid(name string) (int, error) {
	if name == "" {
		return -1, nil
	}
	if n, err := strconv.ParseUint(name, 10, 31); err == nil {
		return int(n), nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return 0, fmt.Errorf("owner of a socket: %w", err)
	}
	return strconv.Atoi(u.Uid)
}

// Running is an agent made of settings, with what it owns.
type Running struct {
	*Agent
	Client   *client.Client
	Identity *mtls.Identity // nil without clusters; Reload it at times
	kek      keystore.KEK
}

// Opener starts an engine whose completions go to sink.
type Opener func(sink engine.Sink) (engine.Engine, error)

// GoEngine is Go's own: everywhere, with the keys on the Go heap.
func GoEngine(sink engine.Sink) (engine.Engine, error) { return gosoft.New(gosoft.Config{}, sink), nil }

// Open makes an agent of settings; local starts the engine of sealed copies. It
// connects, but does not listen before Serve.
func Open(s *Settings, local Opener, log *slog.Logger) (*Running, error) {
	r := &Running{}
	if err := r.open(s, local, log); err != nil {
		return nil, errors.Join(fmt.Errorf("key agent: %w", err), r.Close())
	}
	return r, nil
}

func (r *Running) open(s *Settings, local Opener, log *slog.Logger) error {
	cfg := Config{MaxInflight: s.MaxInflight, MaxConns: s.MaxConns, Log: log}
	for _, l := range s.Listen {
		id, err := uid(l.User)
		if err != nil {
			return err
		}
		cfg.Sockets = append(cfg.Sockets, Socket{l.Path, id})
	}
	tiers, err := r.tiers(s, local, log)
	if err == nil {
		r.Client, err = client.New(s.Timeout.Std(), tiers...)
	}
	if err != nil {
		for _, t := range tiers {
			err = errors.Join(err, t.Close())
		}
		return err
	}
	cfg.Client = r.Client
	r.Agent, err = New(cfg)
	return err
}

func (r *Running) tiers(s *Settings, open Opener, log *slog.Logger) (tiers []client.Tier, err error) {
	if len(s.Clusters) > 0 {
		if r.Identity, err = mtls.Load(s.TLS); err != nil {
			return nil, err
		}
	}
	for i, c := range s.Clusters {
		name := c.Name
		if name == "" {
			name = fmt.Sprintf("cluster %d", i+1)
		}
		cfg := c.Config(r.Identity, log)
		cfg.Name = name
		cluster, err := client.NewCluster(cfg)
		if err != nil {
			return tiers, err
		}
		tiers = append(tiers, cluster)
	}
	if s.Local == nil {
		return tiers, nil
	}
	if r.kek, err = keystore.OpenKEK(s.Local.KEK); err != nil {
		return tiers, err
	}
	store, err := keystore.Open(s.Local.Dir, r.kek)
	if err != nil {
		return tiers, err
	}
	local, err := client.NewLocal(store, s.Local.Idle.Std(), open)
	if err != nil {
		return tiers, err
	}
	return append(tiers, local), nil
}

// Healthy tells whether an operation has somewhere to go: a worker that is
// connected, or sealed copies.
func (r *Running) Healthy() bool {
	for _, t := range r.Client.Tiers() {
		c, ok := t.(*client.Cluster)
		if !ok || slices.ContainsFunc(c.Stats().Workers, func(w client.WorkerStats) bool { return w.Connected }) {
			return true
		}
	}
	return false
}

// reloadEvery is how often the certificate's files are looked at.
const reloadEvery = time.Second

// Run serves until ctx ends, and puts a changed certificate in force meanwhile.
func (r *Running) Run(ctx context.Context) error {
	done := make(chan struct{})
	ctx, stop := context.WithCancel(ctx)
	go func() {
		defer close(done)
		r.reload(ctx)
	}()
	err := r.Serve(ctx)
	stop()
	<-done
	return err
}

func (r *Running) reload(ctx context.Context) {
	tick := time.NewTicker(reloadEvery)
	defer tick.Stop()
	said := map[string]string{} // once, not every second
	tell := func(message string, err error) {
		text := ""
		if err != nil {
			text = err.Error()
		}
		if err != nil && text != said[message] {
			r.cfg.Log.Error(message, "reason", err)
		}
		said[message] = text
	}
	for r.Identity != nil {
		changed, err := r.Identity.Reload()
		tell("key agent's certificate not reloaded, the former stays in force", err)
		if changed {
			r.cfg.Log.Info("key agent's certificate reloaded", "identity", r.Identity.URI())
		}
		tell("no worker will believe this key agent", r.Identity.Usable(time.Now()))
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Close ends the connections to the clusters. Serve has returned before.
func (r *Running) Close() error {
	var err error
	if r.Client != nil {
		err = r.Client.Close()
	}
	if r.kek != nil {
		err = errors.Join(err, r.kek.Close())
	}
	return err
}
