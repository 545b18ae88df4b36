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

func TestConformance(t *testing.T) {
	c := cryptotest.New(t, 2, "rules:\n- {clients: [\""+cryptotest.ProxyURI+"\"], keys: [\"*\"], tls12_premaster: true}\n", enginetest.Kinds...)
	enginetest.RemoteConformance(t, func(t *testing.T, sink engine.Sink) engine.Engine {
		cluster, err := client.NewCluster(client.Config{Identity: cryptotest.Identity(t, c.CA, cryptotest.ProxyURI), Workers: c.Addrs(), WorkerIdentity: cryptotest.WorkerURI})
		if err != nil {
			t.Fatal(err)
		}
		cl, err := client.New(10*time.Second, cluster)
		if err != nil {
			t.Fatal(err)
		}
		return remote.New(cl, 256, sink)
	})
}
