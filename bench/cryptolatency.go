// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"pno/bench/cthread"
	"pno/crypto/agent"
	"pno/crypto/client"
	"pno/crypto/signing"
)

// The ways to a worker. That of a library is package crypto/client in the process
// that wants a signature. That of an agent is what the OpenSSL provider takes: over
// the socket of a key agent, another process.
const (
	pathLibrary = "library"
	pathAgent   = "agent"
)

// LatencyRow is what a way adds to a signature: the time that who wants it waits,
// less what the worker says that it has computed; an agent does not tell, and the
// median of what the worker has computed for the library stands for it.
type LatencyRow struct {
	Key      string       `json:"key"`
	Path     string       `json:"path"` // library, agent
	Rate     int          `json:"rate_offered"`
	ExecP50  float64      `json:"signature_p50_us"`
	TotalP50 float64      `json:"total_p50_us"`
	P50      float64      `json:"added_p50_us"`
	P99      float64      `json:"added_p99_us"`
	Over     float64      `json:"added_over_floor_us"` // added, less what two wake-ups take here
	Spread   float64      `json:"added_p50_spread"`
	Runs     []LatencyRow `json:"runs,omitempty"`
}

// asker has one operation done, and tells how long that was computed.
type asker func() (exec time.Duration, err error)

// latency measures a worker of its own process, with real signatures, and beside it
// what a message and its answer take here in any case.
func (b *rpcBench) latency(ctx context.Context, c *RPCComparison) error {
	p256, err := b.operation("p256", signing.ECDSAP256SHA256)
	if err != nil {
		return err
	}
	addr, cl, err := b.workerWith(ctx, "{kind: libcrypto}")
	if err != nil {
		return err
	}
	defer func() { _ = cl.Close() }()
	_, socket, err := b.cluster.agent(ctx, "", []string{addr})
	if err != nil {
		return err
	}
	p, err := dialAgent(socket)
	if err != nil {
		return err
	}
	defer p.close()
	floors := make([]io.ReadWriteCloser, len(floorPaths))
	for i, path := range floorPaths {
		if floors[i], err = b.startFloor(ctx, path); err != nil {
			return err
		}
		defer floors[i].Close()
		c.Floor = append(c.Floor, FloorRow{Path: path, Rate: b.Rate})
	}
	ops := map[string]*client.Op{"rsa2048": b.rsa, "p256": p256}
	for _, key := range []string{"rsa2048", "p256"} {
		for _, path := range []string{pathLibrary, pathAgent} {
			c.Latency = append(c.Latency, LatencyRow{Key: key, Path: path, Rate: b.Rate})
		}
	}
	for range b.Pairs {
		var bare time.Duration // of the row before, which is that of the library
		for i := range c.Latency {
			row := &c.Latency[i]
			op := *ops[row.Key]
			agent := row.Path == pathAgent
			r, err := b.lowLoad(ctx, agent, func() (time.Duration, error) {
				if agent {
					return bare, p.ask(&op)
				}
				_, err := cl.Do(time.Now().Add(5*time.Second), &op)
				return op.Exec, err
			})
			if err != nil {
				return fmt.Errorf("operation at low load, %s, %s: %w", row.Key, row.Path, err)
			}
			bare = time.Duration(r.ExecP50 * 1000)
			b.Log("%s at %d/s, %s: signature %.0f µs, in all %.0f µs; added p50 %.0f µs, p99 %.0f µs", row.Key, row.Rate, row.Path, r.ExecP50, r.TotalP50, r.P50, r.P99)
			row.Runs = append(row.Runs, r)
		}
		rsa := time.Duration(c.Latency[0].Runs[len(c.Latency[0].Runs)-1].ExecP50 * 1000)
		for i := range c.Floor {
			row := &c.Floor[i]
			r, err := b.floor(ctx, row.Path, floors[i], rsa)
			if err != nil {
				return fmt.Errorf("a message to another process and back, %s: %w", row.Path, err)
			}
			b.Log("a message and its answer at %d/s, %s: p50 %.0f µs, p99 %.0f µs", row.Rate, row.Path, r.P50, r.P99)
			row.Runs = append(row.Runs, r)
		}
	}
	for i := range c.Floor {
		medianFloor(&c.Floor[i])
	}
	for i := range c.Latency {
		row := &c.Latency[i]
		field := func(get func(LatencyRow) float64) float64 { return medianOf(row.Runs, get) }
		row.ExecP50 = field(func(r LatencyRow) float64 { return r.ExecP50 })
		row.TotalP50 = field(func(r LatencyRow) float64 { return r.TotalP50 })
		row.P50 = field(func(r LatencyRow) float64 { return r.P50 })
		row.P99 = field(func(r LatencyRow) float64 { return r.P99 })
		row.Spread = spreadOf(row.Runs, func(r LatencyRow) float64 { return r.P50 })
		row.Over = row.P50 - c.Floor[0].P50
	}
	return nil
}

// lowLoad asks once at a time, at the low rate. The first is not counted: it may be
// that the way is made for it. Who asks is a goroutine of its own, as in a server,
// for that of main is bound to a thread and would be handed over twice for each
// wake-up; or a thread like that of a program in C.
func (b *rpcBench) lowLoad(ctx context.Context, thread bool, ask asker) (r LatencyRow, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		sleep := func(until time.Time) { time.Sleep(time.Until(until)) }
		if thread {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			sleep = cthread.Sleep
		}
		r, err = b.askAtRate(ctx, sleep, ask)
	}()
	<-done
	return r, err
}

func (b *rpcBench) askAtRate(ctx context.Context, sleep func(until time.Time), ask asker) (LatencyRow, error) {
	if _, err := ask(); err != nil {
		return LatencyRow{}, err
	}
	var exec, total, added []time.Duration
	begun, every := time.Now(), time.Second/time.Duration(b.Rate)
	for next := begun; next.Sub(begun) < b.Duration && ctx.Err() == nil; next = next.Add(every) {
		sleep(next)
		start := time.Now()
		if late := start.Sub(next); late > every {
			next = next.Add(late) // a burst of what was missed would find everybody awake
		}
		computed, err := ask()
		if err != nil {
			return LatencyRow{}, err
		}
		took := time.Since(start)
		exec, total, added = append(exec, computed), append(total, took), append(added, took-computed)
	}
	for _, d := range [][]time.Duration{exec, total, added} {
		slices.Sort(d)
	}
	return LatencyRow{ExecP50: micros(quantile(exec, 0.5)), TotalP50: micros(quantile(total, 0.5)),
		P50: micros(quantile(added, 0.5)), P99: micros(quantile(added, 0.99))}, nil
}

// provider asks an agent as the OpenSSL provider does where it cannot pause: it
// writes, and sleeps in the kernel until there is something to read.
type provider struct {
	fd     int
	next   uint64
	packet []byte
	buf    []byte
}

func dialAgent(path string) (*provider, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a socket to the key agent: %w", err)
	}
	p := &provider{fd: fd, buf: make([]byte, agent.MaxPacket)}
	limit := unix.Timeval{Sec: 10}
	err = errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit), unix.Connect(fd, &unix.SockaddrUnix{Name: path}))
	if err == nil {
		p.packet = agent.AppendHello(nil, uint32(os.Getpid()), "pno bench")
		var msg any
		if msg, err = p.exchange(); err == nil {
			if _, ok := msg.(*agent.Welcome); !ok {
				err = fmt.Errorf("it answered HELLO with %T", msg)
			}
		}
	}
	if err != nil {
		p.close()
		return nil, fmt.Errorf("connect to the key agent at %s: %w", path, err)
	}
	return p, nil
}

func (p *provider) close() { _ = unix.Close(p.fd) } // measured is measured

// exchange sends the packet, and returns the message that comes back.
func (p *provider) exchange() (any, error) {
	if _, err := cthread.Write(p.fd, p.packet); err != nil {
		return nil, fmt.Errorf("send: %w", err)
	}
	n, err := cthread.Read(p.fd, p.buf)
	switch {
	case err != nil:
		return nil, fmt.Errorf("receive: %w", err)
	case n == 0:
		return nil, errors.New("the key agent has closed the connection")
	}
	msg, _, err := agent.Next(p.buf[:n])
	return msg, err
}

func (p *provider) ask(op *client.Op) error {
	p.next++
	p.packet = agent.AppendOp(p.packet[:0], p.next, &op.Request, 0)
	msg, err := p.exchange()
	if err != nil {
		return err
	}
	r, ok := msg.(*agent.Result)
	if !ok || r.ID != p.next {
		return fmt.Errorf("the key agent answered operation %d with %+v", p.next, msg)
	}
	if st := signing.Status(r.Status); st != signing.OK {
		return &signing.Error{Status: st}
	}
	return nil
}
