// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"fmt"
)

// backendPort is the back end's, on the client's machine.
const backendPort = 8080

const (
	httpMode   = "mode http\n  option http-keep-alive\n  http-reuse always"
	spliceMode = "mode tcp\n  option splice-auto\n  option splice-response"
)

// HAProxy compares HAProxy with one thread in http mode: client and back end
// are on the other machine, both sides of the proxy are measured.
func HAProxy(ctx context.Context, o Options, w Web) (*Comparison, error) {
	return haproxy(ctx, o, w, "haproxy", httpMode)
}

// Splice compares HAProxy moving bodies by splice, in tcp mode.
func Splice(ctx context.Context, o Options, w Web) (*Comparison, error) {
	return haproxy(ctx, o, w, "splice", spliceMode)
}

func haproxy(ctx context.Context, o Options, w Web, name, mode string) (*Comparison, error) {
	return compare(ctx, o, scenario{
		Comparison: w.comparison(name),
		serve: func(ctx context.Context, s *site) error {
			backend := s.name + "-backend"
			args, err := s.t.nginx(backend, s.clientAddr, backendPort, w)
			if err != nil {
				return err
			}
			if err := s.serveClient(ctx, backendPort, backend, args...); err != nil {
				return err
			}
			if args, err = s.t.haproxy(s, mode); err != nil {
				return err
			}
			return s.serve(ctx, 80, args...)
		},
		load: func(s *site) generator { return s.web(w) },
	})
}

// haproxy writes a configuration with one thread, and returns the command line.
func (t *topology) haproxy(s *site, mode string) ([]string, error) {
	conf, err := t.write(s.name+".cfg", fmt.Sprintf(`global
  nbthread 1
  maxconn 4000
defaults
  timeout connect 10s
  timeout client 60s
  timeout server 60s
listen p
  bind %s:80
  %s
  server b %s:%d
`, s.hostAddr, mode, s.clientAddr, backendPort))
	return []string{"haproxy", "-db", "-f", conf}, err
}
