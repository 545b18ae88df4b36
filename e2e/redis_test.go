// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"
)

const redisAddr = servedAddr + ":6379"

func (l *lab) redis() *proc {
	l.t.Helper()
	p := l.app("redis", "redis-server", "--bind", servedAddr, "--port", "6379", "--protected-mode", "no",
		"--save", "", "--appendonly", "no", "--dir", l.dir, "--tcp-keepalive", "300", "--maxclients", "4000")
	l.waitListening(p, redisAddr)
	return p
}

// redisConn speaks just enough of the redis protocol to check data.
type redisConn struct {
	net.Conn
	r *bufio.Reader
}

func (l *lab) redisDial() *redisConn {
	l.t.Helper()
	c, err := l.client.DialContext(l.t.Context(), "tcp", redisAddr)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { c.Close() })
	return &redisConn{c, bufio.NewReader(c)}
}

func (c *redisConn) send(args ...[]byte) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "*%d\r\n", len(args))
	for _, a := range args {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(a), a)
	}
	_, err := c.Write(b.Bytes())
	return err
}

// receive returns a simple or a bulk answer; an error answer is an error.
func (c *redisConn) receive() ([]byte, error) {
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	line, err := c.r.ReadString('\n')
	if err != nil {
		return nil, err
	}
	line = strings.TrimSpace(line)
	switch {
	case line == "":
		return nil, fmt.Errorf("empty answer")
	case line[0] == '-':
		return nil, fmt.Errorf("redis: %s", line[1:])
	case line[0] != '$':
		return []byte(line[1:]), nil
	}
	n, err := strconv.Atoi(line[1:])
	if err != nil || n < 0 {
		return nil, fmt.Errorf("answer %q", line)
	}
	body := make([]byte, n+2)
	if _, err := io.ReadFull(c.r, body); err != nil {
		return nil, err
	}
	return body[:n], nil
}

func (c *redisConn) do(args ...[]byte) ([]byte, error) {
	if err := c.send(args...); err != nil {
		return nil, err
	}
	return c.receive()
}

func TestRedis(t *testing.T) {
	l := newLab(t)
	p := l.redis()
	for _, pipeline := range []int{1, 16} {
		l.run(fmt.Sprintf("redis-benchmark -P %d", pipeline), func(l *lab) { l.redisBenchmark(pipeline, 20000*min(pipeline, 4)) })
	}
	l.run("binary blobs", testRedisBlobs)
	l.run("pipelined blobs", testRedisPipeline)
	l.run("save in traffic", testRedisSave)
	if p.ended() {
		t.Fatal("redis ended")
	}
	l.checkOffloaded()
}

// redisBenchmark expects a rate for each test and no complaint.
func (l *lab) redisBenchmark(pipeline, requests int) {
	l.t.Helper()
	out := l.mustClientRun(60*time.Second, "redis-benchmark", "-h", servedAddr, "-p", "6379",
		"-P", strconv.Itoa(pipeline), "-n", strconv.Itoa(requests), "-c", "50", "-d", "64", "-r", "10000", "-t", "set,get,lrange_100", "--csv")
	rows, err := csv.NewReader(strings.NewReader(out)).ReadAll()
	if err != nil || len(rows) < 4 {
		l.t.Fatalf("redis-benchmark said (%v):\n%s", err, out)
	}
	for _, row := range rows[1:] {
		if rate, err := strconv.ParseFloat(row[1], 64); err != nil || rate <= 0 {
			l.t.Errorf("redis-benchmark %s: rate %s", row[0], row[1])
		}
		l.t.Logf("-P %d %s: %s/s", pipeline, row[0], row[1])
	}
}

var blobSizes = []int{0, 1, 100, 4096, 65536, 1 << 20, 8 << 20}

func testRedisBlobs(l *lab) {
	c := l.redisDial()
	for i, n := range blobSizes {
		blob := binaryBlob(n, byte(i))
		key := fmt.Appendf(nil, "blob-%d", n)
		if _, err := c.do([]byte("SET"), key, blob); err != nil {
			l.t.Fatalf("SET of %d bytes: %v", n, err)
		}
		got, err := c.do([]byte("GET"), key)
		if err != nil {
			l.t.Fatalf("GET of %d bytes: %v", n, err)
		}
		if !bytes.Equal(got, blob) {
			l.t.Errorf("%d bytes came back different", n)
		}
	}
}

// testRedisPipeline sends all requests before it reads an answer.
func testRedisPipeline(l *lab) {
	c := l.redisDial()
	const n = 2000
	sent := make(chan error, 1)
	go func() {
		for i := range n {
			if err := c.send([]byte("ECHO"), binaryBlob(i*7%9000, byte(i))); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	for i := range n {
		got, err := c.receive()
		if err != nil {
			l.t.Fatalf("answer %d: %v", i, err)
		}
		if !bytes.Equal(got, binaryBlob(i*7%9000, byte(i))) {
			l.t.Fatalf("answer %d is different", i)
		}
	}
	if err := <-sent; err != nil {
		l.t.Fatal(err)
	}
}

// testRedisSave lets the server fork while it serves: the child writes the
// file and must not take anything from its parent's connections.
func testRedisSave(l *lab) {
	c := l.redisDial()
	bench := make(chan struct{})
	go func() {
		defer close(bench)
		out, err := l.clientRun(60*time.Second, "redis-benchmark", "-h", servedAddr, "-n", "100000", "-c", "20", "-t", "set,get", "--csv")
		if err != nil || strings.Contains(out, "rror") {
			l.t.Errorf("redis-benchmark across the saves: %v\n%s", err, out)
		}
	}()
	for range 3 {
		if _, err := c.do([]byte("BGSAVE")); err != nil {
			l.t.Fatalf("BGSAVE: %v", err)
		}
		var info []byte
		var err error
		if !poll(30*time.Second, func() bool {
			info, err = c.do([]byte("INFO"), []byte("persistence"))
			return err == nil && bytes.Contains(info, []byte("rdb_bgsave_in_progress:0"))
		}) {
			l.t.Fatalf("the save does not end: %v\n%s", err, info)
		}
		if !bytes.Contains(info, []byte("rdb_last_bgsave_status:ok")) {
			l.t.Errorf("the save failed:\n%s", info)
		}
	}
	<-bench
}
