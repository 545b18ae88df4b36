// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"pno/internal/netns"
)

// slowRate is how fast a slow reader reads, bytes a second.
const slowRate = 100 << 10

// sink is a kernel HTTP server that answers an upload with its SHA-256, and
// takes those below /slow/ no faster than slowRate.
func (l *lab) sink(ns *netns.NS, addr string) {
	l.t.Helper()
	ln, err := ns.Listen("tcp", addr)
	if err != nil {
		l.t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(takeUpload)}
	go func() { _ = srv.Serve(ln) }()
	l.t.Cleanup(func() { srv.Close() })
}

func takeUpload(w http.ResponseWriter, r *http.Request) {
	h := sha256.New()
	var err error
	if strings.HasPrefix(r.URL.Path, "/slow/") {
		err = copySlowly(h, r.Body)
	} else {
		_, err = io.Copy(h, r.Body)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	_, _ = io.WriteString(w, hex.EncodeToString(h.Sum(nil)))
}

func copySlowly(w io.Writer, r io.Reader) error {
	const perSecond = 10
	for {
		n, err := io.CopyN(w, r, slowRate/perSecond)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		time.Sleep(time.Second * time.Duration(n) / slowRate)
	}
}
