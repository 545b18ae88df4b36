// SPDX-License-Identifier: Apache-2.0

package client_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"testing"
	"time"

	"pno/crypto/client"
	"pno/crypto/cryptotest"
	"pno/crypto/engine"
	"pno/crypto/engine/enginetest"
	"pno/crypto/keystore"
	"pno/crypto/signing"
)

// connect makes a client of a cluster's.
func connect(t testing.TB, c *cryptotest.Cluster, change func(*client.Config)) *client.Cluster {
	t.Helper()
	cfg := client.Config{Identity: cryptotest.Identity(t, c.CA, cryptotest.ProxyURI), Workers: c.Addrs(), WorkerIdentity: cryptotest.WorkerURI}
	if change != nil {
		change(&cfg)
	}
	cl, err := client.NewCluster(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cl.Close() })
	return cl
}

func opFor(t testing.TB, kind string, scheme signing.Scheme) *client.Op {
	digest := sha256.Sum256([]byte("x"))
	op := &client.Op{Request: signing.Request{Key: enginetest.Key(t, kind).ID, Scheme: scheme, Input: signing.Digest, Data: digest[:]}}
	if scheme == signing.Ed25519 {
		op.Input, op.Data = signing.Message, bytes.Repeat([]byte("m"), 130)
	}
	return op
}

func soon() time.Time { return time.Now().Add(20 * time.Second) }

func TestSchemes(t *testing.T) {
	kinds := []string{"RSA-2048", "P-256", "Ed25519"}
	cl := connect(t, cryptotest.New(t, 1, cryptotest.AllowAll, kinds...), nil)
	for _, kind := range kinds {
		tk := enginetest.Key(t, kind)
		for _, s := range []signing.Scheme{signing.RSAPKCS1SHA256, signing.RSAPSSSHA256, signing.ECDSAP256SHA256, signing.Ed25519} {
			if !s.Fits(tk.Public) {
				continue
			}
			op := opFor(t, kind, s)
			sig, err := cl.Do(soon(), op)
			if err != nil {
				t.Errorf("%v: %v", s, err)
				continue
			}
			task, _ := signing.Prepare(&op.Request, tk.Public, false)
			if err := signing.Verify(tk.Public, &task, sig); err != nil {
				t.Errorf("%v: %v", s, err)
			}
		}
	}
}

func TestTypedErrors(t *testing.T) {
	c := cryptotest.New(t, 1, "rules:\n- {clients: [\""+cryptotest.ProxyURI+"\"], keys: [RSA-2048], schemes: [rsa_pss_rsae_sha256]}\n"+
		"- {clients: [\""+cryptotest.ProxyURI+"\"], keys: [Ed25519], rate: 1, burst: 2}\n", "RSA-2048", "P-256", "Ed25519")
	cl := connect(t, c, func(cfg *client.Config) { cfg.Verify = client.VerifyOff })
	with := func(kind string, s signing.Scheme, change func(*client.Op)) *client.Op {
		op := opFor(t, kind, s)
		change(op)
		return op
	}
	none := func(*client.Op) {}
	for _, tt := range []struct {
		name string
		op   *client.Op
		want signing.Status
	}{
		{"good", with("RSA-2048", signing.RSAPSSSHA256, none), signing.OK},
		{"forbidden scheme", with("RSA-2048", signing.RSAPKCS1SHA256, none), signing.Denied},
		{"forbidden key", with("P-256", signing.ECDSAP256SHA256, none), signing.Denied},
		{"unknown key", with("P-256", signing.ECDSAP256SHA256, func(o *client.Op) { o.Key[0] ^= 1 }), signing.UnknownKey},
		{"digest length", with("RSA-2048", signing.RSAPSSSHA256, func(o *client.Op) { o.Data = o.Data[:31] }), signing.BadInput},
		{"raw block", with("RSA-2048", signing.RSAPSSSHA256, func(o *client.Op) { o.Data = make([]byte, 256) }), signing.BadInput},
		{"unknown scheme", with("RSA-2048", 0x0101, none), signing.BadScheme},
		{"decryption", with("RSA-2048", 0x0303, func(o *client.Op) { o.Input, o.Data = signing.TLS12Premaster, make([]byte, 256) }), signing.Denied},
		{"within the rate", with("Ed25519", signing.Ed25519, none), signing.OK},
		{"within the burst", with("Ed25519", signing.Ed25519, none), signing.OK},
		{"beyond the rate", with("Ed25519", signing.Ed25519, none), signing.RateLimited},
		{"and still good", with("RSA-2048", signing.RSAPSSSHA256, none), signing.OK},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := cl.Do(soon(), tt.op); signing.StatusOf(err) != tt.want {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

func TestFallbacks(t *testing.T) {
	const wait = time.Second
	first := cryptotest.New(t, 1, cryptotest.AllowAll, "P-256")
	second := cryptotest.New(t, 1, cryptotest.AllowAll, "P-256")
	store, _, _ := cryptotest.NewStore(t)
	cryptotest.Import(t, store, "P-256", keystore.Options{Name: "copy", Expires: time.Now().Add(time.Hour)})
	local, err := client.NewLocal(store, 20*time.Millisecond, func(sink engine.Sink) (engine.Engine, error) { return cryptotest.Software(sink) })
	if err != nil {
		t.Fatal(err)
	}
	quick := func(name string) func(*client.Config) {
		return func(cfg *client.Config) {
			cfg.Name, cfg.Wait, cfg.Stall, cfg.Streams = name, wait, wait, 1
		}
	}
	clusters := []*client.Cluster{connect(t, first, quick("first")), connect(t, second, quick("second"))}
	cl, err := client.New(30*time.Second, clusters[0], clusters[1], local)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range clusters {
		for deadline := time.Now().Add(20 * time.Second); !c.Stats().Workers[0].Connected; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("a worker is not connected")
			}
		}
	}
	defer local.Close()
	do := func(want string) {
		t.Helper()
		before := cl.Used()[want]
		if _, err := cl.Do(time.Time{}, opFor(t, "P-256", signing.ECDSAP256SHA256)); err != nil {
			t.Fatalf("%v; used %v", err, cl.Used())
		}
		if cl.Used()[want] != before+1 {
			t.Errorf("want %s; used %v", want, cl.Used())
		}
	}
	do("first")
	first.Workers[0].Link.Cut()
	do("second")
	second.Workers[0].Link.Cut()
	do("local")
	for deadline := time.Now().Add(20 * time.Second); clusters[1].Stats().Workers[0].Connected; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a worker behind a partition is connected")
		}
	}
	time.Sleep(wait)
	start := time.Now()
	do("local")
	if took := time.Since(start); took > wait {
		t.Errorf("an outage that is known was waited for: %v", took)
	}
	time.Sleep(60 * time.Millisecond) // the copy is wiped, and opened again
	do("local")
	bad := opFor(t, "P-256", signing.ECDSAP256SHA256)
	bad.Data = bad.Data[:3]
	if _, err := cl.Do(time.Time{}, bad); signing.StatusOf(err) != signing.BadInput {
		t.Errorf("got %v", err)
	}
	first.Workers[0].Link.Mend()
	for deadline := time.Now().Add(10 * time.Second); ; {
		before := cl.Used()["first"]
		if _, err := cl.Do(time.Time{}, opFor(t, "P-256", signing.ECDSAP256SHA256)); err != nil {
			t.Fatal(err)
		}
		if cl.Used()["first"] > before {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the first cluster is not used again")
		}
	}
}

func TestHedge(t *testing.T) {
	c := cryptotest.New(t, 2, cryptotest.AllowAll, "P-256")
	cl := connect(t, c, func(cfg *client.Config) { cfg.HedgeAfter, cfg.Stall = 5*time.Millisecond, time.Minute })
	if _, err := cl.Do(soon(), opFor(t, "P-256", signing.ECDSAP256SHA256)); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		if w := cl.Stats().Workers; w[0].Connected && w[1].Connected {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a worker is not connected")
		}
	}
	c.Workers[0].Fault.Delay(4 * time.Second)
	// The good worker may be late as well, on a busy machine, and the slow one is
	// asked no more while it owes an answer: how many it takes is not known.
	asked := uint64(0)
	for deadline := time.Now().Add(time.Minute); cl.Stats().HedgeWins == 0 || asked < 20; asked++ {
		start := time.Now()
		if _, err := cl.Do(soon(), opFor(t, "P-256", signing.ECDSAP256SHA256)); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > 3*time.Second {
			t.Errorf("took %v", took)
		}
		if time.Now().After(deadline) {
			t.Fatalf("no hedge has won: %+v", cl.Stats())
		}
		time.Sleep(time.Millisecond)
	}
	if s := cl.Stats(); s.Hedges == 0 || s.Hedges > asked {
		t.Errorf("%+v", s)
	}
}

func TestDeadline(t *testing.T) {
	c := cryptotest.New(t, 1, cryptotest.AllowAll, "P-256")
	cl := connect(t, c, func(cfg *client.Config) { cfg.Stall = time.Minute })
	if _, err := cl.Do(soon(), opFor(t, "P-256", signing.ECDSAP256SHA256)); err != nil {
		t.Fatal(err)
	}
	c.Workers[0].Fault.Stall()
	start := time.Now()
	_, err := cl.Do(start.Add(100*time.Millisecond), opFor(t, "P-256", signing.ECDSAP256SHA256))
	if signing.StatusOf(err) != signing.DeadlineExceeded || time.Since(start) > 10*time.Second {
		t.Errorf("%v after %v", err, time.Since(start))
	}
}

func TestConfigErrors(t *testing.T) {
	id := cryptotest.Identity(t, cryptotest.New(t, 0, cryptotest.AllowAll).CA, cryptotest.ProxyURI)
	for name, cfg := range map[string]client.Config{
		"no workers":  {Identity: id, WorkerIdentity: cryptotest.WorkerURI},
		"no identity": {Workers: []string{"127.0.0.1:1"}, Identity: id},
		"no port":     {Workers: []string{"127.0.0.1"}, Identity: id, WorkerIdentity: cryptotest.WorkerURI},
		"no resolver": {Workers: []string{"consul:///x:1"}, Identity: id, WorkerIdentity: cryptotest.WorkerURI},
		"two targets": {Workers: []string{"dns:///x:1", "dns:///y:1"}, Identity: id, WorkerIdentity: cryptotest.WorkerURI},
	} {
		if c, err := client.NewCluster(cfg); err == nil {
			c.Close()
			t.Errorf("%s: taken", name)
		}
	}
	if _, err := client.New(0); err == nil {
		t.Error("a client without tiers")
	}
}

// A name is followed through gRPC's resolver; localhost needs no network.
func TestDNS(t *testing.T) {
	c := cryptotest.New(t, 1, cryptotest.AllowAll, "P-256")
	addr := c.Addrs()[0]
	cl := connect(t, c, func(cfg *client.Config) { cfg.Workers = []string{"dns:///localhost" + addr[len("127.0.0.1"):]} })
	if _, err := cl.Do(soon(), opFor(t, "P-256", signing.ECDSAP256SHA256)); err != nil {
		t.Fatal(err)
	}
}

func TestNoWorker(t *testing.T) {
	c := cryptotest.New(t, 0, cryptotest.AllowAll)
	cl := connect(t, c, func(cfg *client.Config) { cfg.Workers, cfg.Wait = []string{"127.0.0.1:1"}, 50*time.Millisecond })
	_, err := cl.Do(soon(), opFor(t, "P-256", signing.ECDSAP256SHA256))
	if !errors.Is(err, &signing.Error{Status: signing.Unavailable}) {
		t.Errorf("got %v", err)
	}
}
