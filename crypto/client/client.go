// SPDX-License-Identifier: Apache-2.0

package client

import (
	"errors"
	"sync/atomic"
	"time"

	"pno/crypto/signing"
)

// Client asks its tiers in order, until one has the operation done.
type Client struct {
	tiers   []Tier
	timeout time.Duration
	used    []atomic.Uint64 // operations done, by tier
}

// DefaultTimeout is what a handshake can spare for a signature.
const DefaultTimeout = 2 * time.Second

// New makes a client of tiers, which become its own. A timeout of 0 means
// DefaultTimeout.
func New(timeout time.Duration, tiers ...Tier) (*Client, error) {
	if len(tiers) == 0 {
		return nil, errors.New("a client needs a cluster, or sealed copies of keys")
	}
	for _, t := range tiers[:len(tiers)-1] {
		if c, ok := t.(*Cluster); ok {
			c.next.Store(true)
		}
	}
	return &Client{tiers: tiers, timeout: orDefault(timeout, DefaultTimeout), used: make([]atomic.Uint64, len(tiers))}, nil
}

// Timeout is how long an operation may take.
func (c *Client) Timeout() time.Duration { return c.timeout }

// Do has an operation done by the deadline, or the client's timeout when that
// is earlier. Each tier but the last has half of the time that is left. When none
// of several has done it and there is time, they are asked once more: the first
// may have had a worker that it did not come to, among others that said nothing.
func (c *Client) Do(deadline time.Time, op *Op) ([]byte, error) {
	now := time.Now()
	if limit := now.Add(c.timeout); deadline.IsZero() || deadline.After(limit) {
		deadline = limit
	}
	out, late, err := c.ask(deadline, op)
	if len(c.tiers) == 1 || !late || !time.Now().Before(deadline) {
		return out, err
	}
	again := *op
	again.Next = true // an outage was waited for already
	out, _, err = c.ask(deadline, &again)
	op.Exec = again.Exec
	return out, err
}

// ask asks the tiers in turn. When the operation is not done, late tells whether
// one of them might still have done it.
func (c *Client) ask(deadline time.Time, op *Op) (out []byte, late bool, err error) {
	last := error(signing.Errorf(signing.DeadlineExceeded, "no time left"))
	for i, t := range c.tiers {
		left := time.Until(deadline)
		if left <= 0 {
			break
		}
		until := deadline
		if i < len(c.tiers)-1 {
			until = time.Now().Add(left / 2)
		}
		out, err := t.Do(until, op)
		if err == nil {
			c.used[i].Add(1)
			return out, false, nil
		}
		last = err
		switch s := signing.StatusOf(err); {
		case s == signing.DeadlineExceeded || s == signing.Unavailable:
			late = true // nobody answered
		case !s.Elsewhere():
			return nil, false, last
		}
	}
	return nil, late, last
}

// Used returns how many operations each tier has done.
func (c *Client) Used() map[string]uint64 {
	out := make(map[string]uint64, len(c.tiers))
	for i, t := range c.tiers {
		out[t.Name()] += c.used[i].Load()
	}
	return out
}

// Tiers are the client's.
func (c *Client) Tiers() []Tier { return c.tiers }

// Close closes the tiers.
func (c *Client) Close() error {
	var errs []error
	for _, t := range c.tiers {
		errs = append(errs, t.Close())
	}
	return errors.Join(errs...)
}
