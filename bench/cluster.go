// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	proxyID  = "spiffe://pno.bench/proxy/1"
	workerID = "spiffe://pno.bench/cryptod/"
)

// freeAddr is an address of the loopback that nobody has right now.
func freeAddr() (string, error) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	return lis.Addr().String(), lis.Close()
}

// cluster is a key store, and the workers that have opened it.
type cluster struct {
	t       *topology
	ca      *authority
	ns      string
	workers []int // processes
}

// newCluster makes an authority and an empty key store.
func (t *topology) newCluster(ns string) (*cluster, error) {
	ca, err := newAuthority(t.dir)
	if err != nil {
		return nil, err
	}
	c := &cluster{t: t, ca: ca, ns: ns}
	if err := os.Mkdir(t.path("keys"), 0o700); err != nil {
		return nil, fmt.Errorf("make the key store: %w", err)
	}
	rules := fmt.Sprintf("rules:\n- {clients: [%q], keys: [\"*\"]}\n", proxyID)
	if err := os.WriteFile(t.path("acl.yaml"), []byte(rules), 0o600); err != nil {
		return nil, fmt.Errorf("write access rules: %w", err)
	}
	_, err = t.cryptod("keys", "new-kek", t.path("kek"))
	return c, err
}

func (t *topology) path(name string) string { return filepath.Join(t.dir, name) }

// cryptod runs one of its tools.
func (t *topology) cryptod(args ...string) ([]byte, error) {
	out, err := exec.Command(filepath.Join(t.bin, "cryptod"), args...).Output()
	if err != nil {
		if e, ok := errors.AsType[*exec.ExitError](err); ok {
			return nil, fmt.Errorf("cryptod %s: %w: %s", strings.Join(args, " "), err, e.Stderr)
		}
		return nil, fmt.Errorf("cryptod %s: %w", strings.Join(args, " "), err)
	}
	return out, nil
}

// key seals the key of a server's certificate, and returns what stands for it.
func (c *cluster) key(kind string) ([]byte, error) {
	store := []string{"--dir", c.t.path("keys"), "--kek", "file:" + c.t.path("kek")}
	if _, err := c.t.cryptod(append([]string{"keys", "import", kind, c.t.path(kind + ".key")}, store...)...); err != nil {
		return nil, err
	}
	return c.t.cryptod("keys", "export-public", kind, "--pem", "--dir", c.t.path("keys"))
}

// worker starts one more worker, with the engines given as YAML.
func (c *cluster) worker(ctx context.Context, core, engines string) (addr string, err error) {
	name := "worker" + strconv.Itoa(len(c.workers)+1)
	files, err := c.ca.peer(name, workerID+name)
	if err != nil {
		return "", err
	}
	if addr, err = freeAddr(); err != nil {
		return "", err
	}
	conf := fmt.Sprintf(`name: %s
listen: %q
tls: {cert: %s, key: %s, ca: %s}
acl: %s
keys: {dir: %s, kek: "file:%s"}
engines: %s
audit: {path: %s}
metrics: none
`, name, addr, files.Cert, files.Key, files.CA, c.t.path("acl.yaml"), c.t.path("keys"), c.t.path("kek"), engines, c.t.path(name+".audit"))
	if err := os.WriteFile(c.t.path(name+".yaml"), []byte(conf), 0o600); err != nil {
		return "", fmt.Errorf("write the configuration of %s: %w", name, err)
	}
	p, err := c.t.start(c.ns, core, name, filepath.Join(c.t.bin, "cryptod"), "--config", c.t.path(name+".yaml"))
	if err != nil {
		return "", err
	}
	c.workers = append(c.workers, p.Process.Pid)
	return addr, c.t.waitLog(ctx, name, "cryptod serves")
}

// agent starts the key agent of the proxy's host.
func (c *cluster) agent(ctx context.Context, core string, workers []string) (pid int, socket string, err error) {
	files, err := c.ca.peer("agent", proxyID)
	if err != nil {
		return 0, "", err
	}
	socket = c.t.path("agent.sock")
	conf := fmt.Sprintf(`agent:
  listen: [{path: %s}]
  tls: {cert: %s, key: %s, ca: %s}
  clusters: [{workers: ["%s"], worker_identity: "%s*"}]
metrics: none
`, socket, files.Cert, files.Key, files.CA, strings.Join(workers, `", "`), workerID)
	if err := os.WriteFile(c.t.path("agent.yaml"), []byte(conf), 0o600); err != nil {
		return 0, "", fmt.Errorf("write the configuration of the agent: %w", err)
	}
	p, err := c.t.start(c.ns, core, "agent", filepath.Join(c.t.bin, "cryptod"), "agent", "--config", c.t.path("agent.yaml"))
	if err != nil {
		return 0, "", err
	}
	return p.Process.Pid, socket, c.t.waitSocket(ctx, "agent", socket)
}

// waitLog waits until a program has said something.
func (t *topology) waitLog(ctx context.Context, name, text string) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for {
		if said, err := os.ReadFile(t.path(name + ".log")); err == nil && strings.Contains(string(said), text) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s did not come up: %w\n%s", name, ctx.Err(), t.log(name))
		case <-time.After(20 * time.Millisecond):
		}
	}
}
