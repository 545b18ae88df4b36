// SPDX-License-Identifier: Apache-2.0

package remote_test

import (
	"testing"
	"time"

	"pno/crypto/client"
	"pno/crypto/cryptotest"
	"pno/crypto/engine"
	"pno/crypto/engine/enginetest"
	"pno/crypto/engine/remote"
)

// proxy is a client of the inner cluster.
func proxy(t *testing.T, c *cryptotest.Cluster) *client.Client {
	t.Helper()
	cluster, err := client.NewCluster(client.Config{Identity: cryptotest.Identity(t, c.CA, cryptotest.ProxyURI), Workers: c.Addrs(), WorkerIdentity: cryptotest.WorkerURI})
	if err != nil {
		t.Fatal(err)
	}
	cl, err := client.New(10*time.Second, cluster)
	if err != nil {
		t.Fatal(err)
	}
	return cl
}

func TestConformance(t *testing.T) {
	c := cryptotest.New(t, 2, "rules:\n- {clients: [\""+cryptotest.ProxyURI+"\"], keys: [\"*\"], tls12_premaster: true}\n", enginetest.Kinds...)
	enginetest.RemoteConformance(t, func(t *testing.T, sink engine.Sink) engine.Engine {
		return remote.New(proxy(t, c), 256, sink)
	})
}

// What keeps the inner cluster busy leaves most of the queue to who shares it out,
// but where there is hardly any.
func TestWindow(t *testing.T) {
	c := cryptotest.New(t, 1, cryptotest.AllowAll, enginetest.Kinds...)
	for _, tt := range []struct{ capacity, want int }{{0, 256}, {4096, 1024}, {64, 16}, {40, 16}, {5, 5}, {1, 1}} {
		e := remote.New(proxy(t, c), tt.capacity, func([]*engine.Op) {})
		if i := e.Info(); i.Window != tt.want {
			t.Errorf("%d: a window of %d of %d, want %d", tt.capacity, i.Window, i.Capacity, tt.want)
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}
}
