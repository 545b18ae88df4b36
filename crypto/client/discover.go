// SPDX-License-Identifier: Apache-2.0

package client

import (
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/resolver"
	_ "google.golang.org/grpc/resolver/dns" // dns:///, also of a headless service
	"google.golang.org/grpc/serviceconfig"
)

// resolveEvery looks for new workers even when all old ones are well: a
// headless service grows unseen.
const resolveEvery = 30 * time.Second

// follow hands changing lists of addresses to set. Static lists are handed over
// once. The result ends it, and can be asked to look again.
func follow(targets []string, set func([]string), fail func(error)) (*follower, error) {
	if len(targets) == 1 && strings.Contains(targets[0], "://") {
		return followTarget(targets[0], set, fail)
	}
	for _, t := range targets {
		if _, _, err := net.SplitHostPort(t); err != nil {
			return nil, fmt.Errorf("worker %q: %w; write host:port, or one target as dns:///name:port", t, err)
		}
	}
	set(slices.Clone(targets))
	return &follower{}, nil
}

func followTarget(target string, set func([]string), fail func(error)) (*follower, error) {
	u, err := url.Parse(target)
	if err != nil {
		return nil, fmt.Errorf("workers %q: %w", target, err)
	}
	b := resolver.Get(u.Scheme)
	if b == nil {
		return nil, fmt.Errorf("workers %q: no resolver for %q; use dns:///name:port or host:port", target, u.Scheme)
	}
	f := &follower{set: set, fail: fail, stop: make(chan struct{})}
	r, err := b.Build(resolver.Target{URL: *u}, f, resolver.BuildOptions{})
	if err != nil {
		return nil, fmt.Errorf("workers %q: %w", target, err)
	}
	f.resolver = r
	f.done.Add(1)
	go f.run()
	return f, nil
}

// follower is the resolver.ClientConn of a resolver, which calls it from a
// goroutine of its own.
type follower struct {
	set      func([]string)
	fail     func(error)
	resolver resolver.Resolver
	stop     chan struct{}
	done     sync.WaitGroup
}

func (f *follower) run() {
	defer f.done.Done()
	tick := time.NewTicker(resolveEvery)
	defer tick.Stop()
	for {
		select {
		case <-f.stop:
			return
		case <-tick.C:
			f.again()
		}
	}
}

func (f *follower) again() {
	if f.resolver != nil {
		f.resolver.ResolveNow(resolver.ResolveNowOptions{})
	}
}

func (f *follower) close() {
	if f.resolver != nil {
		close(f.stop)
		f.done.Wait()
		f.resolver.Close()
	}
}

// UpdateState is called by the resolver.
func (f *follower) UpdateState(s resolver.State) error {
	var addrs []string
	for _, e := range s.Endpoints {
		for _, a := range e.Addresses {
			addrs = append(addrs, a.Addr)
		}
	}
	for _, a := range s.Addresses {
		addrs = append(addrs, a.Addr)
	}
	slices.Sort(addrs)
	f.set(slices.Compact(addrs))
	return nil
}

// ReportError is called by the resolver; the workers known stay.
func (f *follower) ReportError(err error) { f.fail(err) }

// NewAddress is the old form of UpdateState.
func (f *follower) NewAddress(as []resolver.Address) {
	_ = f.UpdateState(resolver.State{Addresses: as}) // never fails
}

// ParseServiceConfig is not for us: a DNS record must not configure the client.
func (f *follower) ParseServiceConfig(string) *serviceconfig.ParseResult {
	return &serviceconfig.ParseResult{}
}
