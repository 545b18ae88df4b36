// SPDX-License-Identifier: Apache-2.0

// Package agenttest is a key agent for tests: it keeps keys itself, speaks
// crypto/agent's protocol to the OpenSSL provider, and does wrong what it is
// told to. It comes with keys and certificates to test with.
//
// An Agent owns its socket, connections and goroutines, and Stop ends them.
// Faults are set before Start; counters may be read at any time.
package agenttest

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pno/crypto/agent"
	"pno/crypto/signing"
)

// Faults is what an Agent does wrong. A nil function does nothing wrong.
type Faults struct {
	// Welcome replaces the answer to HELLO.
	Welcome func(hello *agent.Hello) []byte
	// Result replaces the answer to an operation; a nil packet: no answer.
	Result func(op *agent.Op, right []byte) []byte
	// Latency is added to each operation.
	Latency time.Duration
	// Inflight is what WELCOME says; 0: 1024.
	Inflight uint32
}

// Agent speaks the agent's side of protocol.h with keys of its own.
type Agent struct {
	Path   string
	Faults Faults

	t    testing.TB
	keys map[signing.KeyID]*Key

	ln    *net.UnixListener
	wg    sync.WaitGroup
	mu    sync.Mutex
	ended bool // by Stop
	conns map[*net.UnixConn]bool

	Hellos, Ops, Peak atomic.Int64 // HELLOs, operations, the most of them at once
	open              atomic.Int64
}

// New makes an agent that is not started yet.
func New(t testing.TB, keys ...*Key) *Agent {
	a := &Agent{t: t, Path: filepath.Join(t.TempDir(), "agent.sock"), keys: map[signing.KeyID]*Key{}}
	for _, k := range keys {
		a.keys[k.ID] = k
	}
	return a
}

// Start listens. An agent that was stopped may be started again.
func (a *Agent) Start() *Agent {
	a.t.Helper()
	os.Remove(a.Path)
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: a.Path, Net: "unixpacket"})
	if err != nil {
		a.t.Fatal(err)
	}
	a.ln, a.ended, a.conns = ln, false, map[*net.UnixConn]bool{}
	a.wg.Add(1)
	go a.accept(ln)
	a.t.Cleanup(a.Stop)
	return a
}

// Stop is what SIGKILL does to an agent: everything ends at once.
func (a *Agent) Stop() {
	a.mu.Lock()
	a.ended = true
	_ = a.ln.Close()
	for c := range a.conns {
		_ = c.Close()
	}
	a.mu.Unlock()
	a.wg.Wait()
}

func (a *Agent) accept(ln *net.UnixListener) {
	defer a.wg.Done()
	for {
		c, err := ln.AcceptUnix()
		if err != nil {
			return
		}
		a.mu.Lock()
		if a.ended {
			_ = c.Close() // it came while Stop ran
		} else {
			a.conns[c] = true
			a.wg.Add(1)
			go a.serve(c)
		}
		a.mu.Unlock()
	}
}

func (a *Agent) serve(c *net.UnixConn) {
	defer a.wg.Done()
	defer func() {
		a.mu.Lock()
		delete(a.conns, c)
		a.mu.Unlock()
		_ = c.Close()
	}()
	buf := make([]byte, agent.MaxPacket)
	for {
		n, err := c.Read(buf)
		if err != nil || n == 0 {
			return
		}
		for packet := append([]byte(nil), buf[:n]...); len(packet) > 0; {
			var m any
			if m, packet, err = agent.Next(packet); err != nil {
				a.t.Errorf("the provider sent what is no message: %v", err)
				return
			}
			switch m := m.(type) {
			case *agent.Hello:
				a.hello(c, m)
			case *agent.Op:
				a.op(c, m)
			default:
				a.t.Errorf("the provider sent a %T", m)
			}
		}
	}
}

func (a *Agent) hello(c *net.UnixConn, m *agent.Hello) {
	a.Hellos.Add(1)
	inflight := a.Faults.Inflight
	if inflight == 0 {
		inflight = 1024
	}
	answer := agent.AppendWelcome(nil, m.ID, inflight, 10_000_000)
	if a.Faults.Welcome != nil {
		answer = a.Faults.Welcome(m)
	}
	if answer != nil {
		_, _ = c.Write(answer) // a client that is gone has no use for it
	}
}

func (a *Agent) countOpen() {
	n := a.open.Add(1)
	for old := a.Peak.Load(); old < n && !a.Peak.CompareAndSwap(old, n); old = a.Peak.Load() {
	}
}

func (a *Agent) op(c *net.UnixConn, m *agent.Op) {
	a.Ops.Add(1)
	a.countOpen()
	finish := func() {
		answer := a.compute(m)
		if a.Faults.Result != nil {
			answer = a.Faults.Result(m, answer)
		}
		a.open.Add(-1)
		if answer != nil {
			_, _ = c.Write(answer) // a client that is gone has no use for it
		}
	}
	a.wg.Add(1)
	time.AfterFunc(a.Faults.Latency, func() { defer a.wg.Done(); finish() })
}

func (a *Agent) compute(m *agent.Op) []byte {
	k := a.keys[m.Key]
	if k == nil {
		return agent.AppendResult(nil, m.ID, signing.UnknownKey, 1, nil)
	}
	r := &signing.Request{Key: m.Key, Scheme: signing.Scheme(m.Scheme), Input: signing.Input(m.Input), Data: m.Data}
	task, err := signing.Prepare(r, k.Signer.Public(), k.TLS13Only)
	if err != nil {
		return agent.AppendResult(nil, m.ID, signing.StatusOf(err), 1, nil)
	}
	var out []byte
	if task.Decrypt {
		out = make([]byte, signing.PremasterLen)
		//nolint:staticcheck // TLS_RSA is what is tested
		err = rsa.DecryptPKCS1v15SessionKey(nil, k.Signer.(*rsa.PrivateKey), task.Data, out)
	} else {
		var opts crypto.SignerOpts = task.Scheme.Hash()
		if task.Scheme.PSS() {
			opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: task.Scheme.Hash()}
		}
		out, err = k.Signer.Sign(rand.Reader, task.Data, opts)
	}
	if err != nil {
		return agent.AppendResult(nil, m.ID, signing.Internal, 1, nil)
	}
	return agent.AppendResult(nil, m.ID, signing.OK, 1, out)
}
