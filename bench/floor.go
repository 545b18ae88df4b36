// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"pno/bench/cthread"
	"pno/crypto/mtls"
)

// The ways of a message to another process and back that stand beside those of an
// operation: what this machine takes for two wake-ups, whatever is built on them.
const (
	floorEpoll = "epoll" // a thread on each side, in epoll_wait; no runtime
	floorGo    = "net"   // Go's package net
	floorTLS   = "tls"   // and TLS 1.3
)

// FloorRow is what a message and its answer take, both as long as those of an RSA
// operation, less what the other side has computed between: as long as a signature
// takes, so that this side sleeps as deeply.
type FloorRow struct {
	Path    string     `json:"path"` // epoll, net, tls
	Rate    int        `json:"rate_offered"`
	Compute float64    `json:"computed_us"`
	P50     float64    `json:"p50_us"`
	P99     float64    `json:"p99_us"`
	Spread  float64    `json:"p50_spread"`
	Runs    []FloorRow `json:"runs,omitempty"`
}

// Lengths of an operation on the wire, without what TLS adds.
const (
	floorAsk    = 103
	floorAnswer = 292
)

// FloorPeer is the other side, in a process of its own: it answers on one
// connection, until that ends.
type FloorPeer struct {
	Path  string
	Files mtls.Files // of tls
}

// Run serves, and tells where once it does.
func (p FloorPeer) Run(listening func(net.Addr)) error {
	if !slices.Contains(floorPaths, p.Path) {
		return fmt.Errorf("there is no way %q; use %s", p.Path, strings.Join(floorPaths, ", "))
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listen for the other side: %w", err)
	}
	listening(lis.Addr())
	c, err := lis.Accept()
	if err != nil {
		return fmt.Errorf("accept the other side: %w", err)
	}
	_ = lis.Close() // there is one only
	conn, err := p.wrap(c)
	if err != nil {
		return err
	}
	defer conn.Close()
	ask, answer := make([]byte, floorAsk), make([]byte, floorAnswer)
	for {
		if _, err := io.ReadFull(conn, ask); err != nil {
			return nil // it is over
		}
		compute, start := time.Duration(binary.LittleEndian.Uint64(ask)), time.Now()
		took := time.Since(start)
		for took < compute {
			took = time.Since(start)
		}
		binary.LittleEndian.PutUint64(answer, uint64(took))
		if _, err := conn.Write(answer); err != nil {
			return fmt.Errorf("answer: %w", err)
		}
	}
}

func (p FloorPeer) wrap(c net.Conn) (io.ReadWriteCloser, error) {
	switch p.Path {
	case floorEpoll:
		runtime.LockOSThread()
		return cthread.NewConn(c)
	case floorTLS:
		id, err := mtls.Load(p.Files)
		if err != nil {
			return nil, err
		}
		secure, _, err := id.Server(func(net.Addr, error) {}).ServerHandshake(c)
		return secure, err
	}
	return c, nil
}

// startFloor starts the other side of one way, and connects to it.
func (b *rpcBench) startFloor(ctx context.Context, path string) (io.ReadWriteCloser, error) {
	name := "floor-" + path
	files, err := b.cluster.ca.peer(name, workerID+name)
	if err != nil {
		return nil, err
	}
	if _, err := b.t.start("", "", name, filepath.Join(b.t.bin, "pno"), "bench", "floor-peer",
		"--path", path, "--cert", files.Cert, "--key", files.Key, "--ca", files.CA); err != nil {
		return nil, err
	}
	const said = "listening on "
	if err := b.t.waitLog(ctx, name, "\n"); err != nil {
		return nil, err
	}
	var addr string
	if _, err := fmt.Sscanf(b.t.log(name), said+"%s", &addr); err != nil {
		return nil, fmt.Errorf("%s does not say where it listens: %s", name, b.t.log(name))
	}
	return dialFloor(ctx, path, addr, files)
}

func dialFloor(ctx context.Context, path, addr string, files mtls.Files) (io.ReadWriteCloser, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("connect to the other side: %w", err)
	}
	switch path {
	case floorEpoll:
		return cthread.NewConn(c)
	case floorTLS:
		id, err := mtls.Load(files)
		if err != nil {
			return nil, err
		}
		secure, _, err := id.Client(workerID+"*").ClientHandshake(ctx, addr, c)
		return secure, err
	}
	return c, nil
}

// floor asks once at a time at the low rate, with so much to compute.
func (b *rpcBench) floor(ctx context.Context, path string, c io.ReadWriter, compute time.Duration) (FloorRow, error) {
	ask, answer := make([]byte, floorAsk), make([]byte, floorAnswer)
	binary.LittleEndian.PutUint64(ask, uint64(compute))
	once := func() (computed time.Duration, err error) {
		if _, err := c.Write(ask); err != nil {
			return 0, err
		}
		if _, err := io.ReadFull(c, answer); err != nil {
			return 0, err
		}
		return time.Duration(binary.LittleEndian.Uint64(answer)), nil
	}
	r, err := b.lowLoad(ctx, path == floorEpoll, once)
	return FloorRow{Path: path, Rate: b.Rate, Compute: r.ExecP50, P50: r.P50, P99: r.P99}, err
}

func medianFloor(row *FloorRow) {
	field := func(get func(FloorRow) float64) float64 { return medianOf(row.Runs, get) }
	row.Compute = field(func(r FloorRow) float64 { return r.Compute })
	row.P50 = field(func(r FloorRow) float64 { return r.P50 })
	row.P99 = field(func(r FloorRow) float64 { return r.P99 })
	row.Spread = spreadOf(row.Runs, func(r FloorRow) float64 { return r.P50 })
}

var floorPaths = []string{floorEpoll, floorGo, floorTLS}
