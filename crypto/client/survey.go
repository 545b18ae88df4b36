// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	cryptov1 "pno/proto/pno/crypto/v1"
)

// WorkerReport is what one worker says of itself, or why it says nothing.
type WorkerReport struct {
	Address string
	Info    *cryptov1.WorkerInfo // nil if Err is not
	Err     error
}

// Survey asks each worker of a cluster what it is, over a connection of its own,
// and has nothing computed. It fails when the workers cannot be looked up; that
// one does not answer before ctx ends is in its report.
func Survey(ctx context.Context, cfg Config) ([]WorkerReport, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	addrs, err := lookUp(ctx, cfg.Workers)
	if err != nil {
		return nil, fmt.Errorf("cluster %s: %w", cfg.Name, err)
	}
	out := make([]WorkerReport, len(addrs))
	var asked sync.WaitGroup
	for i, addr := range addrs {
		asked.Go(func() {
			info, err := askInfo(ctx, &cfg, addr)
			out[i] = WorkerReport{addr, info, err}
		})
	}
	asked.Wait()
	return out, nil
}

// lookUp returns the addresses that targets have now.
func lookUp(ctx context.Context, targets []string) ([]string, error) {
	found, failed := make(chan []string, 1), make(chan error, 1)
	f, err := follow(targets, func(addrs []string) { offer(found, addrs) }, func(err error) { offer(failed, err) })
	if err != nil {
		return nil, err
	}
	defer f.close()
	select {
	case addrs := <-found:
		if len(addrs) == 0 {
			return nil, fmt.Errorf("workers %v: the name has no addresses", targets)
		}
		return addrs, nil
	case err := <-failed:
		return nil, fmt.Errorf("workers %v cannot be looked up: %w", targets, err)
	case <-ctx.Done():
		return nil, fmt.Errorf("workers %v cannot be looked up: %w", targets, context.Cause(ctx))
	}
}

// offer gives a channel its first value; later ones are dropped.
func offer[T any](to chan<- T, v T) {
	select {
	case to <- v:
	default:
	}
}

// askInfo opens a stream, which the worker begins with its description.
func askInfo(ctx context.Context, cfg *Config, addr string) (info *cryptov1.WorkerInfo, err error) {
	conn, err := cfg.open(addr)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := cryptov1.NewCryptoServiceClient(conn).Operate(ctx, grpc.WaitForReady(false))
	if err != nil {
		return nil, plain(err)
	}
	first, err := stream.Recv()
	if err != nil {
		return nil, plain(err)
	}
	if first.Worker == nil {
		return nil, errors.New("it does not begin with what it is: not a worker of this protocol")
	}
	return first.Worker, nil
}

// plain is what a gRPC error says, without its frame.
func plain(err error) error {
	return errors.New(status.Convert(err).Message())
}
