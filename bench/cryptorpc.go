// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"pno/crypto/acl"
	"pno/crypto/audit"
	"pno/crypto/client"
	"pno/crypto/engine"
	"pno/crypto/keyref"
	"pno/crypto/keystore"
	"pno/crypto/mtls"
	"pno/crypto/server"
	"pno/crypto/signing"
)

// RPCOptions shape the benchmark of the way to the cluster.
type RPCOptions struct {
	Options          // the rate is that of one operation at a time, which latency is measured at
	Inflight []int   // operations at once
	Cards    []int   // simulated cards of one worker
	CardRate float64 // operations a second of each
}

// RPCRun is one measured run, or the median of several, field by field. CPU is
// that of client and worker together.
type RPCRun struct {
	Ops    float64  `json:"ops_per_s"`
	CPU    float64  `json:"cpu_us_per_op"`
	P50    float64  `json:"p50_us"`
	P99    float64  `json:"p99_us"`
	Spread float64  `json:"cpu_spread"` // (max − min) / median over the runs
	Runs   []RPCRun `json:"runs,omitempty"`
}

// RPCRow is the way alone: the worker's engine answers at once.
type RPCRow struct {
	Inflight int `json:"inflight"`
	RPCRun
}

// CardRow is a worker with simulated cards.
type CardRow struct {
	Cards     int     `json:"simulated_cards"`
	CardRate  float64 `json:"card_ops_per_s"`
	Efficient float64 `json:"efficiency"` // ops/s ÷ what the cards could do
	RPCRun
}

// RPCComparison is the benchmark's result.
type RPCComparison struct {
	Benchmark string       `json:"benchmark"`
	RPC       []RPCRow     `json:"rpc"`
	Latency   []LatencyRow `json:"latency"`
	Floor     []FloorRow   `json:"floor"`
	Cards     []CardRow    `json:"cards"`
	Machine   Machine      `json:"machine"`
}

// cardInflight is more than four cards have open at 40,000 operations a second
// and 200 µs each, and less than one holds.
const cardInflight = 256

// CryptoRPC measures what an operation costs between a client and a worker, what
// the way adds to a signature, and how simulated cards add up.
func CryptoRPC(ctx context.Context, o RPCOptions) (*RPCComparison, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	if o.Rate < 1 || o.CardRate <= 0 || slices.Min(append(slices.Clone(o.Inflight), 1)) < 1 || slices.Min(append(slices.Clone(o.Cards), 1)) < 1 {
		return nil, errors.New("rates, operations in flight and cards must be positive")
	}
	defer debug.SetGCPercent(debug.SetGCPercent(800)) // as cryptod does
	t, err := newTopology(o.Bin)
	if err != nil {
		return nil, err
	}
	defer t.Close()
	r := &rpcBench{RPCOptions: o, t: t}
	if r.cluster, err = t.newCluster(""); err != nil {
		return nil, err
	}
	c := &RPCComparison{Benchmark: "cryptorpc", Machine: machine()}
	for _, measure := range []func(context.Context, *RPCComparison) error{r.way, r.latency, r.cards} {
		if err := measure(ctx, c); err != nil {
			return nil, err
		}
	}
	return c, nil
}

type rpcBench struct {
	RPCOptions
	t       *topology
	cluster *cluster
	rsa     *client.Op // an operation with the key rsa2048
}

// operation seals a key in the store, once, and returns an operation with it.
func (b *rpcBench) operation(kind string, scheme signing.Scheme) (*client.Op, error) {
	if err := b.cluster.ca.server(kind, "127.0.0.1"); err != nil {
		return nil, err
	}
	text, err := b.cluster.key(kind)
	if err != nil {
		return nil, err
	}
	ref, err := keyref.ParsePEM(text)
	if err != nil {
		return nil, fmt.Errorf("reference to the %s key: %w", kind, err)
	}
	digest := sha256.Sum256([]byte(kind))
	return &client.Op{Request: signing.Request{Key: signing.IDOf(ref.SPKI), Scheme: scheme, Input: signing.Digest, Data: digest[:]}}, nil
}

// instant is an engine that answers at once, to measure the way to it.
type instant struct{ sink engine.Sink }

type noKey struct{}

func (noKey) Close() {}

func (instant) Info() engine.Info {
	return engine.Info{Kind: "instant", Capacity: 1 << 16, Verifies: true}
}
func (instant) Load(engine.Material) (engine.Key, error) { return noKey{}, nil }
func (instant) Close() error                             { return nil }

func (i instant) Submit(ops []*engine.Op) int {
	for _, op := range ops {
		op.Out = make([]byte, 256)
	}
	i.sink(ops)
	return len(ops)
}

// worker serves with these engines inside this process, with access rules and
// audit log like any other, and returns a client of it.
func (b *rpcBench) worker(name string, engines []server.Opener) (cl *client.Cluster, stop func(), err error) {
	files, err := b.cluster.ca.peer(name, workerID+name)
	if err != nil {
		return nil, nil, err
	}
	id, err := mtls.Load(files)
	if err != nil {
		return nil, nil, err
	}
	rules, err := acl.Load(b.t.path("acl.yaml"))
	if err != nil {
		return nil, nil, err
	}
	kek, err := keystore.OpenKEK("file:" + b.t.path("kek"))
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, kek.Close()) }()
	store, err := keystore.Open(b.t.path("keys"), kek)
	if err != nil {
		return nil, nil, err
	}
	log, err := audit.Open(audit.Config{Path: b.t.path(name + ".audit")})
	if err != nil {
		return nil, nil, err
	}
	srv, err := server.New(server.Config{Name: name, Identity: id, Rules: rules, Engines: engines, Audit: log, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, nil, errors.Join(err, log.Close())
	}
	end := func() {
		_ = srv.Close() // measured is measured
		_ = log.Close()
	}
	if _, err := srv.LoadKeys(store); err != nil {
		end()
		return nil, nil, err
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		end()
		return nil, nil, fmt.Errorf("listen for the benchmark's client: %w", err)
	}
	go func() { _ = srv.Serve(lis) }() // Close ends it
	cl, err = b.client(lis.Addr().String(), client.VerifyOff)
	if err != nil {
		end()
		return nil, nil, err
	}
	return cl, func() { _ = cl.Close(); end() }, nil
}

func (b *rpcBench) client(addr string, verify client.Verification) (*client.Cluster, error) {
	files, err := b.cluster.ca.peer("client", proxyID)
	if err != nil {
		return nil, err
	}
	id, err := mtls.Load(files)
	if err != nil {
		return nil, err
	}
	return client.NewCluster(client.Config{Identity: id, Workers: []string{addr}, WorkerIdentity: workerID + "*", Verify: verify})
}

// way measures the way alone.
func (b *rpcBench) way(ctx context.Context, c *RPCComparison) error {
	var err error
	if b.rsa, err = b.operation("rsa2048", signing.RSAPSSSHA256); err != nil {
		return err
	}
	cl, stop, err := b.worker("instant", []server.Opener{func(s engine.Sink) (engine.Engine, error) { return instant{s}, nil }})
	if err != nil {
		return err
	}
	defer stop()
	for _, n := range b.Inflight {
		c.RPC = append(c.RPC, RPCRow{Inflight: n})
	}
	for range b.Pairs {
		for i := range c.RPC {
			row := &c.RPC[i]
			r, err := b.load(ctx, cl, row.Inflight)
			if err != nil {
				return err
			}
			b.Log("%d in flight: %.0f ops/s, CPU %.2f µs an operation, p50 %.0f µs, p99 %.0f µs", row.Inflight, r.Ops, r.CPU, r.P50, r.P99)
			row.Runs = append(row.Runs, r)
		}
	}
	for i := range c.RPC {
		c.RPC[i].RPCRun = medianRPC(c.RPC[i].Runs)
	}
	return nil
}

// load keeps n operations open for the duration. The CPU time is that of this
// process and of others.
func (b *rpcBench) load(ctx context.Context, cl *client.Cluster, n int, others ...int) (RPCRun, error) {
	warm := *b.rsa
	if _, err := cl.Do(time.Now().Add(5*time.Second), &warm); err != nil {
		return RPCRun{}, fmt.Errorf("first operation: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, b.Duration)
	defer cancel()
	var (
		mu     sync.Mutex
		took   []time.Duration
		failed error
		wg     sync.WaitGroup
	)
	before, err := busy(others)
	if err != nil {
		return RPCRun{}, err
	}
	begun := time.Now()
	for range n {
		wg.Go(func() {
			op := *b.rsa
			mine := make([]time.Duration, 0, 4096)
			var err error
			for start := time.Now(); err == nil && ctx.Err() == nil; {
				_, err = cl.Do(start.Add(10*time.Second), &op)
				now := time.Now()
				mine = append(mine, now.Sub(start))
				start = now
			}
			mu.Lock()
			defer mu.Unlock()
			took = append(took, mine...)
			failed = cmp.Or(failed, err)
		})
	}
	wg.Wait()
	elapsed := time.Since(begun)
	after, err := busy(others)
	if err = errors.Join(err, failed); err != nil {
		return RPCRun{}, err
	}
	slices.Sort(took)
	return RPCRun{Ops: float64(len(took)) / elapsed.Seconds(), CPU: micros(after-before) / float64(len(took)),
		P50: micros(quantile(took, 0.5)), P99: micros(quantile(took, 0.99))}, nil
}

// workerWith starts a worker with these engines, and is a client of it.
func (b *rpcBench) workerWith(ctx context.Context, engines string) (addr string, cl *client.Cluster, err error) {
	if addr, err = b.cluster.worker(ctx, "", "["+engines+"]"); err != nil {
		return "", nil, err
	}
	cl, err = b.client(addr, client.VerifyOff)
	return addr, cl, err
}

// cards measures workers with simulated cards, each a process of its own. The
// same operation again and again is answered from a card's memory, at its pace.
func (b *rpcBench) cards(ctx context.Context, c *RPCComparison) error {
	for _, n := range b.Cards {
		row := CardRow{Cards: n, CardRate: b.CardRate}
		engines := strings.Repeat(fmt.Sprintf("{kind: simcard, rate: %g}, ", b.CardRate), n)
		_, cl, err := b.workerWith(ctx, engines)
		if err != nil {
			return err
		}
		defer func() { _ = cl.Close() }()
		worker := b.cluster.workers[len(b.cluster.workers)-1]
		for range b.Pairs {
			r, err := b.load(ctx, cl, cardInflight, worker)
			if err != nil {
				return err
			}
			b.Log("%d simulated cards: %.0f ops/s, CPU %.2f µs an operation, p50 %.0f µs, p99 %.0f µs", n, r.Ops, r.CPU, r.P50, r.P99)
			row.Runs = append(row.Runs, r)
		}
		row.RPCRun = medianRPC(row.Runs)
		row.Efficient = math.Round(1000*row.Ops/(float64(n)*b.CardRate)) / 1000
		c.Cards = append(c.Cards, row)
	}
	return nil
}

// busy is the CPU time that this process and some others have used.
func busy(others []int) (time.Duration, error) {
	sum, err := processCPU(os.Getpid())
	for _, pid := range others {
		d, e := processCPU(pid)
		sum, err = sum+d, errors.Join(err, e)
	}
	return sum, err
}

// medianRPC takes the median of each field.
func medianRPC(runs []RPCRun) RPCRun {
	field := func(get func(RPCRun) float64) float64 { return medianOf(runs, get) }
	return RPCRun{
		Ops:    field(func(r RPCRun) float64 { return r.Ops }),
		CPU:    field(func(r RPCRun) float64 { return r.CPU }),
		P50:    field(func(r RPCRun) float64 { return r.P50 }),
		P99:    field(func(r RPCRun) float64 { return r.P99 }),
		Spread: spreadOf(runs, func(r RPCRun) float64 { return r.CPU }),
		Runs:   runs,
	}
}
