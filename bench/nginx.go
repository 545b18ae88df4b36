// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Web shapes a benchmark of answers over HTTP/1.1.
type Web struct {
	Size     int // body bytes
	Conns    int
	Close    bool // a new connection for each request
	Sendfile bool // of a body from a file
}

func (w Web) comparison(name string) Comparison {
	return Comparison{Benchmark: name, Size: w.Size, Conns: w.Conns, Close: w.Close, Sendfile: w.Sendfile}
}

// Nginx compares one nginx worker over kernel sockets with the same over the
// offload.
func Nginx(ctx context.Context, o Options, w Web) (*Comparison, error) {
	return nginx(ctx, o, w, "nginx")
}

// Conns is Nginx with a new connection for each request.
func Conns(ctx context.Context, o Options, w Web) (*Comparison, error) {
	w.Close = true
	return nginx(ctx, o, w, "conns")
}

// Bulk is Nginx with bodies that fill the wire, from a file.
func Bulk(ctx context.Context, o Options, w Web) (*Comparison, error) {
	sc := nginxScenario(w, "bulk")
	sc.saturate = w.Size > literal // a body from a file, the length of which nginx tells
	return compare(ctx, o, sc)
}

func nginx(ctx context.Context, o Options, w Web, name string) (*Comparison, error) {
	return compare(ctx, o, nginxScenario(w, name))
}

func nginxScenario(w Web, name string) scenario {
	return scenario{
		Comparison: w.comparison(name),
		serve: func(ctx context.Context, s *site) error {
			args, err := s.t.nginx(s.name, s.hostAddr, 80, w)
			if err != nil {
				return err
			}
			return s.serve(ctx, 80, args...)
		},
		load: func(s *site) generator { return s.web(w) },
	}
}

// literal is the longest body that nginx answers out of its configuration.
const literal = 2048

// body is what everything is answered with.
func (w Web) body() string { return strings.Repeat("0123456789abcdef", w.Size/16+1)[:w.Size] }

// nginx writes a configuration with one worker that answers the same body to
// everything, and returns the command line.
func (t *topology) nginx(name, addr string, port int, w Web) ([]string, error) {
	keepalive := "keepalive_requests 100000000; keepalive_timeout 3600s;"
	if w.Close {
		keepalive = "keepalive_timeout 0;"
	}
	root := filepath.Join(t.dir, name+"-root")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return nil, fmt.Errorf("make nginx's document root: %w", err)
	}
	location := `location / { return 200 "` + w.body() + `"; }`
	if w.Size > literal {
		if _, err := t.write(name+"-root/index.html", w.body()); err != nil {
			return nil, err
		}
		sendfile := "off; output_buffers 1 256k"
		if w.Sendfile {
			sendfile = "on"
		}
		location = "location / { root " + root + "; open_file_cache max=16; sendfile " + sendfile + "; }"
	}
	conf, err := t.write(name+".conf", fmt.Sprintf(`worker_processes 1; daemon off; user root; error_log stderr; pid %[1]s/%[2]s.pid;
events { worker_connections 16384; }
http {
  access_log off; %[3]s
  client_body_temp_path %[1]s/t1; proxy_temp_path %[1]s/t2; fastcgi_temp_path %[1]s/t3;
  uwsgi_temp_path %[1]s/t4; scgi_temp_path %[1]s/t5;
  server { listen %[4]s:%[6]d backlog=4096; %[5]s }
}
`, t.dir, name, keepalive, addr, location, port))
	return []string{"nginx", "-c", conf}, err
}
