// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"pno/internal/netns"
	adminv1 "pno/proto/pno/admin/v1"
)

const testEnv = "PNO_TEST_DPUD"

// TestMain makes this binary dpud when it is started as such.
func TestMain(m *testing.M) {
	if os.Getenv(testEnv) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

func TestCommandErrors(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good, bad := write("good.yaml", minimal), write("bad.yaml", minimal+"shards: many\n")
	sockets := "control: " + dir + "/c\nadmin: " + dir + "/a\nmetrics: none\n"
	missing := write("missing.yaml", "link: {interface: nonesuch0}\naddresses: [198.18.0.2/24]\n"+sockets)
	tests := []struct {
		name string
		args []string
		code int
		want string
	}{
		{"good", []string{"--config", good, "--check"}, 0, good + ": good"},
		{"flag", []string{"--frob"}, exitUsage, "dpud: unknown flag: --frob"},
		{"argument", []string{"x"}, exitUsage, `dpud: unknown command "x" for "dpud"`},
		{"no file", []string{"--config", dir + "/none"}, exitUsage,
			"dpud: read configuration: open " + dir + "/none: no such file or directory: dpud must be told its link and addresses; deploy/dpud.yaml is a sample"},
		{"mistake", []string{"--config", bad}, exitUsage, "dpud: " + bad + `:3:9: want a whole number, found "many"`},
		{"no interface", []string{"--config", missing}, exitFailed, "dpud: link: no interface nonesuch0 here; there are lo"},
		{"version", []string{"--version"}, 0, "dpud "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			if code := command(tt.args, &out, &out); code != tt.code || !strings.Contains(out.String(), tt.want) {
				t.Errorf("exit code %d, want %d\n%s\nwant %s", code, tt.code, &out, tt.want)
			}
		})
	}
}

// lab is a namespace with one end of a veth pair for dpud.
type lab struct {
	t   *testing.T
	ns  *netns.NS
	dir string
}

func newLab(t *testing.T) *lab {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, for a network namespace")
	}
	wire, dpu := netns.New(t, "wire"), netns.New(t, "dpu")
	netns.VethPair(t, dpu, "p0", wire, "w0")
	return &lab{t: t, ns: dpu, dir: t.TempDir()}
}

// config writes a configuration with sockets of this lab.
func (l *lab) config(text string) string {
	l.t.Helper()
	path := filepath.Join(l.dir, "dpud.yaml")
	text += "addresses: [198.18.0.2/24]\ncontrol: " + l.dir + "/control\nadmin: " + l.dir + "/admin\nmetrics: 127.0.0.1:9464\n"
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		l.t.Fatal(err)
	}
	return path
}

// dpud is the command, and what it writes. under is a program that starts it.
func (l *lab) dpud(conf string, under ...string) (*exec.Cmd, *bytes.Buffer) {
	l.t.Helper()
	self, err := os.Executable()
	if err != nil {
		l.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	l.t.Cleanup(cancel)
	argv := append(under, self, "--config", conf)
	cmd := l.ns.Command(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), testEnv+"=1")
	out := new(bytes.Buffer)
	cmd.Stdout, cmd.Stderr = out, out
	return cmd, out
}

// The program itself, with each driver and no more privileges than its unit
// gives: it tells systemd, answers offloadctl, and goes without a trace.
func TestProgram(t *testing.T) {
	for _, driver := range []string{driverXDP, driverPacket} {
		t.Run(driver, func(t *testing.T) {
			l := newLab(t)
			notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: l.dir + "/n", Net: "unixgram"})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = notify.Close() }()
			cmd, out := l.dpud(l.config("link: {interface: p0, driver: "+driver+"}\n"),
				"setpriv", "--bounding-set="+unitCapabilities(t), "--inh-caps=-all")
			cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+l.dir+"/n")
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = cmd.Process.Kill() }() // it has ended by then, unless the test failed
			told := func(want string) {
				t.Helper()
				b := make([]byte, 256)
				_ = notify.SetReadDeadline(time.Now().Add(20 * time.Second))
				if n, err := notify.Read(b); err != nil || string(b[:n]) != want {
					t.Fatalf("systemd was told %q (%v), want %q\n%s", b[:n], err, want, out)
				}
			}
			told("READY=1")
			checkAnswers(t, l.dir+"/admin", driver)
			scrape(t, l.ns)
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			told("STOPPING=1")
			if err := cmd.Wait(); err != nil {
				t.Errorf("dpud: %v\n%s", err, out)
			}
			for _, path := range []string{"/control", "/admin"} {
				if _, err := os.Lstat(l.dir + path); err == nil {
					t.Errorf("%s is left behind", path)
				}
			}
		})
	}
}

// unitCapabilities are those of deploy/dpud.service, for setpriv.
func unitCapabilities(t *testing.T) string {
	t.Helper()
	unit, err := os.ReadFile("../../deploy/dpud.service")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(unit), "\nCapabilityBoundingSet=")
	line, _, _ := strings.Cut(rest, "\n")
	set := "-all"
	for _, name := range strings.Fields(line) {
		set += ",+" + strings.ToLower(strings.TrimPrefix(name, "CAP_"))
	}
	// The unit lifts the limit of locked memory, which a test may not be allowed
	// to; who may pass over the limit needs no other.
	if strings.Contains(string(unit), "\nLimitMEMLOCK=infinity\n") {
		set += ",+ipc_lock"
	}
	return set
}

func checkAnswers(t *testing.T, socket, driver string) {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	status, err := adminv1.NewAdminServiceClient(conn).GetStatus(t.Context(), &adminv1.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if s := status.GetStatus(); len(s.GetProblems()) > 0 || s.GetShards() == 0 || s.GetStartTime() == nil {
		t.Errorf("status %v", s)
	}
	links, err := adminv1.NewDpuServiceClient(conn).ListLinks(t.Context(), &adminv1.ListLinksRequest{})
	if err != nil || len(links.GetLinks()) != 1 {
		t.Fatalf("%v, %v", links, err)
	}
	if l := links.GetLinks()[0]; l.GetInterface() != "p0" || l.GetDriver() != driver || l.GetMode() != modeCopy || l.GetMtu() != 1500 {
		t.Errorf("link %v", l)
	}
}

// scrape reads the counters of a real network stack: their names come
// from it, and must be good ones too.
func scrape(t *testing.T, ns *netns.NS) {
	t.Helper()
	resp, err := ns.HTTPClient().Get("http://127.0.0.1:9464/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`pno_dpu_info{protocol="1.1"`, "pno_dpu_netstack_tcp_retransmits_total 0", `pno_dpu_link_receive_packets_total{interface="p0",link="0"}`} {
		if !strings.Contains(string(body), "\n"+want) {
			t.Errorf("no metric %s", want)
		}
	}
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Log("metrics not linted: promtool is not installed (Debian package prometheus)")
		return
	}
	cmd := exec.CommandContext(t.Context(), promtool, "check", "metrics")
	cmd.Stdin = bytes.NewReader(body)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
}

// What an operator gets wrong is told in words, with the way out.
func TestStartErrors(t *testing.T) {
	tests := []struct {
		name, conf string
		under      []string
		prepare    func(l *lab)
		want       string
	}{
		{
			name: "zero-copy that the driver has not", conf: "link: {interface: p0, mode: zerocopy}\n",
			want: "the driver of p0 cannot do zero-copy: use mode auto",
		},
		{
			name: "more queues than there are", conf: "link: {interface: p0, queues: 16}\n",
			want: "link: open p0: 16 queues of the 1 there are",
		},
		{
			name: "no permission for AF_XDP", conf: "link: {interface: p0}\n",
			under: []string{"setpriv", "--bounding-set=-all", "--inh-caps=-all"},
			want:  "(dpud needs CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF: run it as root, or from its systemd unit)",
		},
		{
			name: "no permission for AF_PACKET", conf: "link: {interface: p0, driver: af_packet}\n",
			under: []string{"setpriv", "--bounding-set=-all", "--inh-caps=-all"},
			want:  "(dpud needs CAP_NET_ADMIN and CAP_NET_RAW: run it as root, or from its systemd unit)",
		},
		{
			name: "admin socket in use", conf: "link: {interface: p0}\n",
			prepare: func(l *lab) { hold(l.t, "unix", l.dir+"/admin") },
			want:    "another process serves there; stop it, or name another path",
		},
		{
			name: "control socket in use", conf: "link: {interface: p0}\n",
			prepare: func(l *lab) { hold(l.t, "unixpacket", l.dir+"/control") },
			want:    "another process serves there",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := newLab(t)
			if tt.prepare != nil {
				tt.prepare(l)
			}
			cmd, out := l.dpud(l.config(tt.conf), tt.under...)
			err := cmd.Run()
			if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != exitFailed || !strings.Contains(out.String(), tt.want) {
				t.Errorf("%v\n%s\nwant %s", err, out, tt.want)
			}
		})
	}
}

func hold(t *testing.T, network, path string) {
	t.Helper()
	l, err := net.ListenUnix(network, &net.UnixAddr{Name: path, Net: network})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
}
