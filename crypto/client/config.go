// SPDX-License-Identifier: Apache-2.0

package client

import (
	"crypto"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"pno/crypto/acl"
	"pno/crypto/mtls"
	"pno/crypto/signing"
)

// Op is an operation to be done.
type Op struct {
	signing.Request
	// Public is the public half, to verify with. When it is nil, and
	// verification is on, the cluster is asked for it once.
	Public crypto.PublicKey
	// Next says that who asks has another place to have it done, once this one says
	// that it cannot: an outage is not waited for.
	Next bool
	// Exec is set by Do: how long the worker that answered has computed, as it
	// says. 0 when no worker of a cluster did.
	Exec time.Duration
}

// Tier is a place that has operations done: one of a Client's fallbacks.
type Tier interface {
	Name() string
	// Do returns the signature, or an error whose signing.StatusOf says why not.
	Do(deadline time.Time, op *Op) ([]byte, error)
	Close() error
}

// Verification says which signatures of workers are verified here.
type Verification string

// RSA is cheap to verify; ECDSA costs more to verify than to sign.
const (
	VerifyAll Verification = "all"
	VerifyRSA Verification = "rsa"
	VerifyOff Verification = "off"
)

// Config is a cluster as its client sees it. Zero values mean the defaults of
// the comments.
type Config struct {
	Name     string
	Identity *mtls.Identity
	// Workers are host:port, or one target of a gRPC resolver, as
	// dns:///cryptod.pno.svc.cluster.local:8443 for a headless service.
	Workers []string
	// WorkerIdentity is the URI in a worker's certificate, or a pattern that
	// ends in a star.
	WorkerIdentity string
	Verify         Verification // all
	Streams        int          // to each worker; 2
	// HedgeAfter is when a second worker is asked; 0: when the answer is later
	// than answers use to be.
	HedgeAfter time.Duration
	Attempts   int           // in all; one more than there are workers, 4 to 16
	Wait       time.Duration // for a worker while none is connected; DefaultWait, which see
	Stall      time.Duration // a stream without any answer for that long is broken; 1 s
	Eject      time.Duration // a worker that signed wrongly; 30 s
	Log        *slog.Logger
}

// DefaultWait is how long an operation waits for a worker while none is connected.
// When there is no tier after the cluster, that goes for outages only which have
// lasted for as long as operations may take; before that, it waits as long as it
// may.
const DefaultWait = 500 * time.Millisecond

const (
	leastAttempts = 4
	mostAttempts  = 16
)

func (c *Config) complete() error {
	if c.Name == "" {
		c.Name = "cluster"
	}
	if len(c.Workers) == 0 {
		return fmt.Errorf("cluster %s has no workers", c.Name)
	}
	if c.WorkerIdentity == "" {
		return fmt.Errorf("cluster %s does not say who its workers are: set worker_identity to the URI of their certificates", c.Name)
	}
	if err := acl.CheckPattern(c.WorkerIdentity); err != nil {
		return fmt.Errorf("cluster %s: worker identity: %w", c.Name, err)
	}
	if c.Identity == nil {
		return errors.New("no certificate to be known by")
	}
	c.Verify = orDefault(c.Verify, VerifyAll)
	c.Streams = orDefault(c.Streams, 2)
	c.Stall = orDefault(c.Stall, time.Second)
	c.Eject = orDefault(c.Eject, 30*time.Second)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

func orDefault[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}
