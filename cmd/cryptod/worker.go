// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"pno/crypto/acl"
	"pno/crypto/audit"
	"pno/crypto/engine/libcrypto"
	"pno/crypto/keystore"
	"pno/crypto/mtls"
	"pno/crypto/procs"
	"pno/crypto/secmem"
	"pno/crypto/server"
	"pno/internal/daemon"
)

// worker is what runWorker runs.
type worker struct {
	set   settings
	log   *slog.Logger
	id    *mtls.Identity
	store *keystore.Store
	kek   keystore.KEK
	audit *audit.Log
	srv   *server.Server

	rules   fileStamp
	former  string // what the last look at the keys said, to say it once
	failing map[string]string
	kekTry  time.Time // when the KEK may be looked for again
}

// fileStamp tells a changed file from one that is the same.
type fileStamp struct {
	size int64
	time time.Time
}

func stampOf(path string) fileStamp {
	info, err := os.Stat(path)
	if err != nil {
		return fileStamp{}
	}
	return fileStamp{info.Size(), info.ModTime()}
}

// gcPercent: the heap is a few megabytes, all of it short-lived, and the default
// would collect it hundreds of times a second under load.
const gcPercent = 800

func holdMemory(mode string, log *slog.Logger) error {
	err := secmem.HoldProcess(mode != "off")
	if err != nil && mode != "required" {
		log.Warn("keys are not as safe as they could be", "reason", err)
		return nil
	}
	return err
}

func runWorker(ctx context.Context, set settings) (err error) {
	daemon.CalmGC(gcPercent)
	log := daemon.NewLog(os.Stderr, set.Log)
	if err := holdMemory(set.LockMemory, log); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	w := &worker{set: set, log: log, failing: map[string]string{}}
	if w.kek, err = keystore.OpenKEK(set.Keys.KEK); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.kek.Close()) }()
	if w.store, err = keystore.Open(set.Keys.Dir, w.kek); err != nil {
		return err
	}
	if w.id, err = mtls.Load(set.TLS); err != nil {
		return err
	}
	w.rules = stampOf(set.ACL)
	rules, err := acl.Load(set.ACL)
	if err != nil {
		return err
	}
	if w.audit, err = audit.Open(audit.Config{Path: set.Audit.Path, MaxSize: int64(set.Audit.MaxSize), Keep: set.Audit.Keep, Log: log}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.audit.Close()) }()
	if w.srv, err = server.New(w.config(rules)); err != nil {
		return err
	}
	lis, err := net.Listen("tcp", set.Listen)
	if err != nil {
		return errors.Join(fmt.Errorf("listen for proxies: %w", err), w.srv.Close())
	}
	w.reloadKeys()
	w.tell("own certificate", "no client will believe this worker", w.id.Usable(time.Now()))
	return w.serve(ctx, lis)
}

func (w *worker) config(rules *acl.Rules) server.Config {
	cfg := server.Config{Name: w.set.Name, Identity: w.id, Rules: rules, Audit: w.audit, Log: w.log, MaxInflight: w.set.MaxInflight,
		MaxTimeout: w.set.MaxTimeout.Std(), CheckEvery: w.set.Reload.Std(), Reflection: w.set.Reflection, Limits: server.Limits(w.set.Limits),
		Summary: w.set.Audit.Summary.Std()}
	for i := range w.set.Engines {
		cfg.Engines = append(cfg.Engines, w.set.Engines[i].opener(w.id))
	}
	return cfg
}

func (w *worker) serve(ctx context.Context, lis net.Listener) error {
	served := make(chan error, 2)
	go func() { served <- w.srv.Serve(lis) }()
	background, cancel := context.WithCancel(context.Background())
	defer cancel()
	go w.srv.Watch(background)
	if w.set.Metrics != "none" {
		m, err := serveMetrics(w.set.Metrics, w.registry(), func(err error) { served <- err })
		if err != nil {
			return errors.Join(err, w.srv.Close())
		}
		defer func() { _ = m.Close() }() // the worker has ended
	}
	go daemon.Watchdog(background, w.log, func() bool { return true })
	go procs.Fit(background, w.log)
	daemon.Ready(w.log)
	w.log.Info("cryptod serves", "address", lis.Addr().String(), "identity", w.id.URI())
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	tick := time.NewTicker(w.set.Reload.Std())
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			daemon.Stopping(w.log)
			drain, cancel := context.WithTimeout(context.Background(), w.set.Drain.Std())
			defer cancel()
			err := w.srv.Drain(drain)
			w.log.Info("cryptod stopped")
			return err
		case err := <-served:
			return errors.Join(err, w.srv.Close())
		case <-hup:
			w.rules, w.kekTry = fileStamp{}, time.Time{}
		case <-tick.C:
		}
		w.reload()
	}
}

// reload looks whether certificates, rules or keys have changed. What cannot be
// read leaves what is in force, and is logged once.
func (w *worker) reload() {
	changed, err := w.id.Reload()
	w.tell("certificate", "certificate not reloaded, the former stays in force", err)
	if changed {
		w.srv.CheckPeers()
		w.log.Info("certificate reloaded", "identity", w.id.URI())
	}
	w.tell("own certificate", "no client will believe this worker", w.id.Usable(time.Now()))
	if now := stampOf(w.set.ACL); now != w.rules {
		rules, err := acl.Load(w.set.ACL)
		w.tell("access rules", "access rules not reloaded, the former stay in force", err)
		if err == nil {
			w.rules = now
			w.srv.SetRules(rules)
			w.log.Info("access rules reloaded", "rules", rules.Len())
		}
	}
	w.reloadKeys()
}

func (w *worker) reloadKeys() {
	c, err := w.srv.LoadKeys(w.store)
	if errors.Is(err, keystore.ErrOtherKEK) && w.reopenKEK() {
		c, err = w.srv.LoadKeys(w.store)
	}
	w.tell("keys", "some keys cannot be read; the others are in use, and what was removed is not", err)
	if c.Added+c.Removed > 0 || w.former == "" {
		w.log.Info("keys loaded", "added", c.Added, "removed", c.Removed, "kept", c.Kept)
	}
	w.former = "told"
	w.tell("memory", "keys are not as safe as they could be", libcrypto.Unlocked())
}

// kekEvery bounds how often the KEK is looked for in vain: it may be in a token.
const kekEvery = 10 * time.Second

// reopenKEK looks whether there is another KEK where this one was, as after
// `cryptod keys rotate`; keys that are loaded need neither.
func (w *worker) reopenKEK() bool {
	if time.Now().Before(w.kekTry) {
		return false
	}
	w.kekTry = time.Now().Add(kekEvery)
	next, err := keystore.OpenKEK(w.set.Keys.KEK)
	w.tell("kek", "KEK not opened again, the former stays in use", err)
	if err != nil {
		return false
	}
	if next.ID() == w.kek.ID() {
		w.tell("kek", "the former KEK stays in use", next.Close())
		return false
	}
	w.log.Info("KEK opened again", "former", w.kek.ID(), "now", next.ID())
	w.tell("kek", "former KEK not closed", w.kek.Close())
	w.kek, w.store = next, w.store.WithKEK(next)
	return true
}

// tell logs what is wrong with a file when that changes.
func (w *worker) tell(what, message string, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != w.failing[what] && err != nil {
		w.log.Error(message, "reason", err)
	}
	w.failing[what] = text
}

func (w *worker) registry() *prometheus.Registry {
	r := w.srv.Registry()
	r.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Namespace: "pno", Subsystem: "crypto", Name: "audit_lost_total",
		Help: "Audit records that were lost because the disk did not keep up."}, func() float64 { return float64(w.audit.Lost()) }))
	gauge := func(name, help string, value func() int) {
		r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "pno", Subsystem: "crypto", Name: name, Help: help},
			func() float64 { return float64(value()) }))
	}
	gauge("heap_used_bytes", "Of the locked memory for keys of the libcrypto engine, what is used; keys are refused beyond seven eighths.",
		func() int { used, _ := libcrypto.Heap(); return used })
	gauge("heap_bytes", "Locked memory for keys of the libcrypto engine.", func() int { _, size := libcrypto.Heap(); return size })
	return r
}

// serveMetrics answers /metrics; failed is called if it cannot any more.
func serveMetrics(addr string, r *prometheus.Registry, failed func(error)) (*http.Server, error) {
	lis, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for metrics: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(r, promhttp.HandlerOpts{}))
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() {
		if err := s.Serve(lis); !errors.Is(err, http.ErrServerClosed) {
			failed(fmt.Errorf("serve metrics: %w", err))
		}
	}()
	return s, nil
}
