// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"pno/internal/netns"
)

// simLab is a namespace with nothing but a loopback, where pno sim runs.
func simLab(t *testing.T) *lab {
	t.Helper()
	if mode(*modeFlag) == modeKernel {
		t.Skip("the control run has no simulator")
	}
	l := &lab{t: t, mode: modeKernel, host: netns.New(t, "sim"), dir: workDir(t)}
	l.client = l.host
	return l
}

// simReport is what the tests read of pno sim --stats.
type simReport struct {
	SocketsOffloaded uint64            `json:"sockets_offloaded"`
	SocketsKernel    map[string]uint64 `json:"sockets_kernel"`
	BytesTx          uint64            `json:"bytes_tx"`
	BytesRx          uint64            `json:"bytes_rx"`
	Wire             struct {
		ToDPU  struct{ Packets, Lost uint64 } `json:"to_dpu"`
		ToEdge struct{ Packets, Lost uint64 } `json:"to_edge"`
	} `json:"wire"`
	DPU struct {
		Sessions struct{ Open, Violators uint64 }
		Sockets  struct{ Open, Accepted, Connected uint64 }
	} `json:"dpu"`
}

func (l *lab) simReport(name string) (r simReport) {
	l.t.Helper()
	content, err := os.ReadFile(l.path(name))
	if err == nil {
		err = json.Unmarshal(content, &r)
	}
	if err != nil {
		l.t.Fatalf("statistics of the simulation: %v\n%s", err, content)
	}
	return r
}

// sim starts pno sim with a command.
func (l *lab) sim(name string, o spawnOptions, flags []string, argv ...string) *proc {
	l.t.Helper()
	args := append([]string{binary(l.t, "pno"), "sim", "--stats", l.path(name + ".json")}, flags...)
	return spawn(l.t, l.dir, name, l.host, append(append(args, "--"), argv...), o)
}

const published = "127.0.0.1:8080"

// TestSimulatedWire moves bodies in both directions over a bad wire, and over
// one without any delay, where a stack can stall of its own.
func TestSimulatedWire(t *testing.T) {
	for _, tt := range []struct {
		name  string
		flags []string
		bad   bool
	}{
		{"perfect", nil, false},
		{"1% loss, reordering, 20 ms", []string{"--loss", "1", "--reorder", "1", "--delay", "10ms"}, true},
		{"two shards, bluefield2", []string{"--shards", "2", "--pcie", "bluefield2"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := simLab(t)
			flags := append([]string{"--publish", published + "=" + servedAddr + ":80"}, tt.flags...)
			p := l.sim("sim", spawnOptions{}, flags, l.writeNginx(nginxConf{Sendfile: true})...)
			l.waitListening(p, published)
			for _, name := range []string{"1b", "1k", "64k", "1m"} {
				l.download(published, name)
				l.upload(published, name)
			}
			l.inPieces(published, "100m", 64)
			l.uploadMany(published, "1m", 100, 64)
			p.stop(syscall.SIGTERM, 10*time.Second)
			r := l.simReport("sim.json")
			if r.SocketsOffloaded == 0 || r.BytesTx < 100<<20 || r.BytesRx < 100<<20 {
				t.Errorf("statistics do not show the transfers: %+v", r)
			}
			if lost := r.Wire.ToDPU.Lost + r.Wire.ToEdge.Lost; (lost > 0) != tt.bad {
				t.Errorf("%d packets were lost on the wire", lost)
			}
		})
	}
}

// inPieces fetches one body over many connections, a range on each: over a
// wire that loses packets, one connection is slow by nature.
func (l *lab) inPieces(addr, name string, pieces int64) {
	l.t.Helper()
	o := testSite(l.t).objects[name]
	client := httpClient(l.client, 60*time.Second)
	body := make([]byte, o.Size)
	begin := time.Now()
	var wg sync.WaitGroup
	step := (o.Size + pieces - 1) / pieces
	for from := int64(0); from < o.Size; from += step {
		wg.Go(func() {
			to := min(from+step, o.Size)
			req, err := http.NewRequest(http.MethodGet, "http://"+addr+"/"+name, nil)
			if err != nil {
				l.t.Error(err)
				return
			}
			req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", from, to-1))
			resp, err := client.Do(req)
			if err == nil {
				_, err = io.ReadFull(resp.Body, body[from:to])
				resp.Body.Close()
			}
			if err != nil {
				l.t.Errorf("bytes %d to %d of /%s: %v", from, to, name, err)
			}
		})
	}
	wg.Wait()
	if sum := sumHex(body); sum != o.Sum {
		l.t.Errorf("/%s in %d pieces has sum %s, not %s", name, pieces, sum, o.Sum)
	}
	l.t.Logf("%s in %d pieces: %.1f MB/s", name, pieces, float64(o.Size)/1e6/time.Since(begin).Seconds())
}

// uploadMany puts one body again and again, and checks each copy.
func (l *lab) uploadMany(addr, name string, times, conns int) {
	l.t.Helper()
	o := testSite(l.t).objects[name]
	client := httpClient(l.client, 60*time.Second)
	begin := time.Now()
	turn := make(chan struct{}, conns)
	var wg sync.WaitGroup
	for i := range times {
		wg.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			copied := fmt.Sprintf("%s-%d", name, i)
			if err := put(client, "http://"+addr+"/up/"+copied, o.File); err != nil {
				l.t.Errorf("upload %d: %v", i, err)
				return
			}
			h := sha256.New()
			f, err := os.Open(l.path("nginx-up/" + copied))
			if err == nil {
				_, err = io.Copy(h, f)
				f.Close()
			}
			if sum := hex.EncodeToString(h.Sum(nil)); err != nil || sum != o.Sum {
				l.t.Errorf("upload %d was stored with sum %s, not %s (%v)", i, sum, o.Sum, err)
			}
		})
	}
	wg.Wait()
	l.t.Logf("%d uploads of %s: %.1f MB/s", times, name, float64(o.Size)*float64(times)/1e6/time.Since(begin).Seconds())
}

func put(client *http.Client, url, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	req, err := http.NewRequest(http.MethodPut, url, f)
	if err != nil {
		return err
	}
	if st, err := f.Stat(); err == nil {
		req.ContentLength = st.Size()
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("status %s", resp.Status)
	}
	return nil
}

// TestSimulationUnprivileged runs two simulations at once as a user with no
// rights at all.
func TestSimulationUnprivileged(t *testing.T) {
	const nobody = 65534
	l := simLab(t)
	// The tree may be where nobody can read.
	for _, name := range []string{"pno", "libpno.so"} {
		if out, err := exec.Command("install", "-m", "755", binary(t, name), l.path(name)).CombinedOutput(); err != nil {
			t.Fatalf("copy %s: %v %s", name, err, out)
		}
	}
	var sims []*proc
	for i := range 2 {
		sub := *l
		sub.dir = filepath.Join(l.dir, fmt.Sprint(i))
		if err := os.Mkdir(sub.dir, 0o755); err != nil {
			t.Fatal(err)
		}
		argv := sub.writeNginx(nginxConf{})
		if out, err := exec.Command("chown", "-R", fmt.Sprint(nobody), sub.dir).CombinedOutput(); err != nil {
			t.Fatalf("give %s away: %v %s", sub.dir, err, out)
		}
		outside := fmt.Sprintf("127.0.0.1:%d", 8080+i)
		args := append([]string{l.path("pno"), "sim", "--stats", sub.path("sim.json"), "--publish", outside + "=" + servedAddr + ":80", "--"}, argv...)
		p := spawn(t, sub.dir, "sim", l.host, args, spawnOptions{uid: nobody})
		l.waitListening(p, outside)
		l.download(outside, "1m")
		sims = append(sims, p)
	}
	for i, p := range sims {
		l.download(fmt.Sprintf("127.0.0.1:%d", 8080+i), "1m")
		p.stop(syscall.SIGTERM, 10*time.Second)
		sub := *l
		sub.dir = filepath.Join(l.dir, fmt.Sprint(i))
		if r := sub.simReport("sim.json"); r.SocketsOffloaded == 0 || r.BytesTx < 1<<20 {
			t.Errorf("statistics do not show the transfers: %+v", r)
		}
	}
}

// TestSimulationLoopback lets a program talk to itself, offloaded at both ends.
func TestSimulationLoopback(t *testing.T) {
	l := simLab(t)
	p := l.sim("sim", spawnOptions{dies: true}, []string{"--offload-loopback"}, script(l, "talk.py", "127.0.0.1")...)
	if err := p.wait(60 * time.Second); err != nil {
		t.Fatalf("it ended with %v:\n%s", err, p.logText())
	}
	if r := l.simReport("sim.json"); r.SocketsOffloaded < 3 || r.BytesRx < 10<<20 {
		t.Errorf("statistics do not show the transfers: %+v", r)
	}
}

// TestSimulationForward lets a program out to a loopback service.
func TestSimulationForward(t *testing.T) {
	l := simLab(t)
	l.sink(l.host, "127.0.0.1:9000")
	o := testSite(t).objects["1m"]
	p := l.sim("sim", spawnOptions{dies: true}, []string{"--forward", "198.18.0.100:9000=127.0.0.1:9000"},
		"curl", "-sSf", "--max-time", "30", "-H", "Expect:", "-T", o.File, "http://198.18.0.100:9000/1m")
	if err := p.wait(60 * time.Second); err != nil {
		t.Fatalf("it ended with %v:\n%s", err, p.logText())
	}
	if got := tail(p.logText(), 1); got != o.Sum {
		t.Errorf("the service got sum %s, not %s", got, o.Sum)
	}
	if r := l.simReport("sim.json"); r.SocketsOffloaded == 0 || r.BytesTx < 1<<20 {
		t.Errorf("statistics do not show the transfer: %+v", r)
	}
}
