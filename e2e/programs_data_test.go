// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestRedisReplication runs two servers, the second a replica of the first:
// transactions, messages to subscribers, and a data set that crosses twice.
func TestRedisReplication(t *testing.T) {
	l := simLab(t)
	server := "redis-server --bind " + servedAddr + " --protected-mode no --save '' --appendonly no" +
		" --rdbcompression no --repl-diskless-sync-delay 0 --enable-debug-command yes --dir " + l.dir
	g := l.program("redis", spawnOptions{}, append(publish(6379), publish(6380)...), sh(fmt.Sprintf(`
%s --port 6379 & first=$!
%s --port 6380 --replicaof %s 6379 & second=$!
trap 'kill $first $second' TERM
wait $first || wait $first
wait $second || wait $second
`, server, server, servedAddr))...)
	cli := func(port int, args ...string) string {
		out, _ := l.clientRun(20*time.Second, append([]string{"redis-cli", "-p", strconv.Itoa(port)}, args...)...)
		return strings.TrimSpace(out)
	}
	wantRedis := func(port int, want string, args ...string) {
		t.Helper()
		var got string
		if !poll(30*time.Second, func() bool { got = cli(port, args...); return strings.Contains(got, want) }) {
			t.Fatalf("redis-cli %s on port %d says %q, not %q", strings.Join(args, " "), port, got, want)
		}
	}
	wantRedis(6380, "master_link_status:up", "info", "replication")

	t.Run("transaction", func(t *testing.T) {
		script := "MULTI\nSET counter 41\nINCR counter\nGET counter\nEXEC\n"
		out := l.clientInput(t, script, "redis-cli", "-p", "6379")
		if !strings.HasSuffix(strings.TrimSpace(out), "OK\n42\n42") {
			t.Errorf("the transaction said %q", out)
		}
		wantRedis(6380, "42", "get", "counter")
	})
	t.Run("subscribers", func(t *testing.T) { testRedisSubscribers(t, l) })
	t.Run("data", func(t *testing.T) {
		cli(6379, "debug", "populate", "20000", "key", "1000")
		wantRedis(6379, "db0:keys=20001", "info", "keyspace")
		cli(6380, "replicaof", "no", "one")
		cli(6380, "flushall")
		cli(6380, "replicaof", servedAddr, "6379")
		wantRedis(6380, "master_link_status:up", "info", "replication")
		if a, b := cli(6379, "debug", "digest"), cli(6380, "debug", "digest"); a != b {
			t.Errorf("the replica has digest %s, not %s", b, a)
		}
	})
	r := g.stop(syscall.SIGTERM, 16)
	if r.DPU.Sockets.Connected < 2 || r.BytesRx < 20e6 {
		t.Errorf("the replication was not offloaded: %+v", r)
	}
}

// testRedisSubscribers has every subscriber, at both servers, get every
// message.
func testRedisSubscribers(t *testing.T, l *lab) {
	const subscribers, messages = 8, 50
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var ready, done sync.WaitGroup
	for i := range subscribers {
		ready.Add(1)
		done.Go(func() {
			cmd := l.client.Command(ctx, "redis-cli", "-p", strconv.Itoa(6379+i%2), "subscribe", "news")
			out, err := cmd.StdoutPipe()
			if err == nil {
				err = l.client.Start(cmd)
			}
			if err != nil {
				t.Error(err)
				ready.Done()
				return
			}
			n := 0
			for s := bufio.NewScanner(out); n < messages && s.Scan(); {
				switch {
				case s.Text() == "subscribe":
					ready.Done()
				case s.Text() == fmt.Sprintf("message-%d", n):
					n++
				}
			}
			if n != messages {
				t.Errorf("subscriber %d got %d of %d messages", i, n, messages)
			}
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
	}
	ready.Wait()
	var script strings.Builder
	for i := range messages {
		fmt.Fprintf(&script, "PUBLISH news message-%d\n", i)
	}
	l.clientInput(t, script.String(), "redis-cli", "-p", "6379")
	done.Wait()
}

// clientInput runs a client program with something to read.
func (l *lab) clientInput(t *testing.T, input string, argv ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := l.client.Command(ctx, argv[0], argv[1:]...)
	var out bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &out, &out
	err := l.client.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out.String())
	}
	return out.String()
}

// TestMemcached stores and fetches over many connections at once; its threads
// get their connections from one that accepts.
func TestMemcached(t *testing.T) {
	l := simLab(t)
	g := l.program("memcached", spawnOptions{}, publish(11211),
		debian(t, "/usr/bin/memcached"), "-u", "nobody", "-l", servedAddr, "-t", "4", "-m", "256", "-I", "4m")
	dial := func() (net.Conn, error) { return l.client.DialContext(t.Context(), "tcp", "127.0.0.1:11211") }
	if !poll(30*time.Second, func() bool {
		c, err := dial()
		if err != nil {
			return false
		}
		defer c.Close()
		_, err = memcache(c, "version\r\n", nil)
		return err == nil
	}) {
		t.Fatalf("memcached does not answer:\n%s", g.p.logText())
	}
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			c, err := dial()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			for k, n := range []int{0, 1, 1000, 64 << 10, 1 << 20, 10} {
				blob := binaryBlob(n, byte(i*8+k))
				if _, err := memcache(c, fmt.Sprintf("set key-%d-%d 0 0 %d\r\n", i, k, n), blob); err != nil {
					t.Errorf("set of %d bytes: %v", n, err)
					return
				}
				got, err := memcache(c, fmt.Sprintf("get key-%d-%d\r\n", i, k), nil)
				if err != nil || !bytes.Equal(got, blob) {
					t.Errorf("get of %d bytes: %d bytes, %v", n, len(got), err)
					return
				}
			}
		})
	}
	wg.Wait()
	g.stop(syscall.SIGTERM, 33)
}

// memcache is one exchange of the text protocol.
func memcache(c net.Conn, command string, body []byte) ([]byte, error) {
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	request := []byte(command)
	if strings.HasPrefix(command, "set ") {
		request = append(append(request, body...), "\r\n"...)
	}
	if _, err := c.Write(request); err != nil {
		return nil, err
	}
	r := bufio.NewReader(c)
	line, err := r.ReadString('\n')
	if err != nil {
		return nil, err
	}
	var key string
	var flags, n int
	if _, err := fmt.Sscanf(line, "VALUE %s %d %d", &key, &flags, &n); err != nil {
		if strings.HasPrefix(line, "STORED") || strings.HasPrefix(line, "VERSION") {
			return nil, nil
		}
		return nil, fmt.Errorf("memcached said %q", line)
	}
	got := make([]byte, n+len("\r\nEND\r\n"))
	if _, err := io.ReadFull(r, got); err != nil {
		return nil, err
	}
	return got[:n], nil
}

// TestPostgreSQL has a postmaster that forks a process for each connection,
// and clients that are offloaded as well as such that are not.
func TestPostgreSQL(t *testing.T) {
	l := simLab(t)
	postgres, err := user.Lookup("postgres")
	if err != nil {
		t.Fatal(err)
	}
	uid, _ := strconv.Atoi(postgres.Uid)
	l.forUser(uid)
	bin := filepath.Dir(debian(t, "/usr/lib/postgresql/*/bin/postgres"))
	data := l.path("data")
	init := exec.Command(filepath.Join(bin, "initdb"), "-D", data, "-A", "trust", "-U", "postgres", "-N", "--no-instructions", "--locale=C")
	init.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	init.Dir = l.dir
	if out, err := init.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}

	appendTo(t, filepath.Join(data, "pg_hba.conf"), "host all all 198.18.0.0/15 trust\n")

	g := l.programAs(uid, "postgres", publish(5432), filepath.Join(bin, "postgres"), "-D", data, "-k", "", "-F",
		"-c", "listen_addresses="+servedAddr, "-c", "shared_buffers=16MB")
	psql := func(sql string) (string, error) {
		out, err := l.clientRun(30*time.Second, filepath.Join(bin, "psql"), "-h", "127.0.0.1", "-U", "postgres", "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql)
		return strings.TrimSpace(out), err
	}
	var out string
	if !poll(30*time.Second, func() bool { out, err = psql("select 1"); return err == nil }) {
		t.Fatalf("psql: %v\n%s\n%s", err, out, g.p.logText())
	}
	// A result of 4 MB, and where the server thinks it is.
	var want strings.Builder
	for i := range 300000 {
		fmt.Fprintf(&want, "%d %d\n", i, i*i)
	}
	if out, err := psql("copy (select i, i::bigint*i from generate_series(0, 299999) i) to stdout (delimiter ' ')"); err != nil || out != strings.TrimSpace(want.String()) {
		t.Errorf("copy to the client: %d bytes, and not the right ones (%v)", len(out), err)
	}
	if out, err := psql("select inet_server_addr() || ' ' || inet_server_port()"); err != nil || out != servedAddr+"/32 5432" {
		t.Errorf("the server's address is %q (%v)", out, err)
	}
	pgbench := func(where []string, args ...string) []string {
		return append(append([]string{filepath.Join(bin, "pgbench"), "-U", "postgres"}, where...), append(args, "postgres")...)
	}
	here, there := []string{"-h", "127.0.0.1"}, []string{"-h", "198.18.0.100"}
	l.mustClientRun(30*time.Second, pgbench(here, "-i", "-q", "-s", "1")...)
	wantBench(t, l.mustClientRun(30*time.Second, pgbench(here, "-c", "8", "-j", "2", "-t", "50", "-n")...), 400)

	// The same from a client that is offloaded itself, a connection for each transaction.
	client := l.program("pgbench", spawnOptions{dies: true}, []string{"--forward", "198.18.0.100:5432=127.0.0.1:5432"},
		pgbench(there, "-c", "4", "-j", "2", "-t", "25", "-n", "-C")...)
	client.finish(60*time.Second, 100)
	wantBench(t, client.p.logText(), 100)
	if out, err := psql("select count(*) from pgbench_history"); err != nil || out != "500" {
		t.Errorf("there are %s transactions in the history, not 500 (%v)", out, err)
	}
	g.stop(syscall.SIGINT, 100)
}

// wantBench expects that pgbench did all of its transactions.
func wantBench(t *testing.T, out string, n int) {
	t.Helper()
	if want := fmt.Sprintf("actually processed: %d/%d\n", n, n); !strings.Contains(out, want) || !strings.Contains(out, "failed transactions: 0 ") {
		t.Errorf("pgbench did not do its %d transactions:\n%s", n, out)
	}
}

func appendTo(t *testing.T, name, text string) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(text)
		f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}
