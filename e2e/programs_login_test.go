// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestSSH has a daemon that executes itself anew for each connection, and then
// splits up into processes with fewer and fewer rights.
func TestSSH(t *testing.T) {
	l := simLab(t)
	for _, key := range []string{"host", "user"} {
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", l.path(key)).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v\n%s", err, out)
		}
	}
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil { // as its service would
		t.Fatal(err)
	}
	conf := l.write("sshd.conf", fmt.Sprintf(`
ListenAddress %s:22
HostKey %s
AuthorizedKeysFile %s
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
PidFile none
MaxStartups 20
Subsystem sftp internal-sftp
`, servedAddr, l.path("host"), l.path("user.pub")))
	g := l.program("sshd", spawnOptions{}, []string{"--publish", "127.0.0.1:2222=" + servedAddr + ":22"},
		debian(t, "/usr/sbin/sshd"), "-D", "-e", "-f", conf)

	options := []string{"-i", l.path("user"), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
		"-o", "BatchMode=yes", "-o", "LogLevel=ERROR"}
	ssh := func(input string, command string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
		defer cancel()
		cmd := l.client.Command(ctx, "ssh", append(options, "-p", "2222", "root@127.0.0.1", command)...)
		var out strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &out
		if input != "" {
			f, err := os.Open(input)
			if err != nil {
				return "", err
			}
			defer f.Close()
			cmd.Stdin = f
		}
		err := l.client.Start(cmd)
		if err == nil {
			err = cmd.Wait()
		}
		return strings.TrimSpace(out.String()), err
	}
	var out string
	var err error
	if !poll(30*time.Second, func() bool { out, err = ssh("", "echo here"); return err == nil }) {
		t.Fatalf("ssh: %v: %s", err, out)
	}
	o := testSite(t).objects["16m"]
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if out, err := ssh(o.File, "sha256sum"); err != nil || !strings.HasPrefix(out, o.Sum) {
				t.Errorf("upload over ssh: %s, want %s (%v)", out, o.Sum, err)
			}
		})
	}
	wg.Wait()
	scp := append([]string{"scp", "-q", "-P", "2222"}, append(options, "root@127.0.0.1:"+o.File, l.path("copy"))...)
	l.mustClientRun(40*time.Second, scp...)
	if sum := fileSum(t, l.path("copy")); sum != o.Sum {
		t.Errorf("scp made a copy with sum %s, not %s", sum, o.Sum)
	}
	g.stop(syscall.SIGTERM, 7)
}

// TestFTP has a daemon that forks, changes its root, gives up its rights and
// locks itself up with seccomp for each session; client and server are
// offloaded, with a connection for every transfer, opened by either.
func TestFTP(t *testing.T) {
	l := simLab(t)
	site := testSite(t)
	if err := os.MkdirAll("/run/vsftpd/empty", 0o755); err != nil { // as its service would
		t.Fatal(err)
	}
	if err := os.Mkdir(l.path("ftp"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"1k", "1m", "16m"} {
		if out, err := exec.Command("cp", site.objects[name].File, l.path("ftp/"+name)).CombinedOutput(); err != nil {
			t.Fatalf("%v %s", err, out)
		}
	}
	conf := l.write("vsftpd.conf", fmt.Sprintf(`
listen=YES
background=NO
listen_address=127.0.0.1
anonymous_enable=YES
no_anon_password=YES
anon_root=%s
connect_from_port_20=NO
xferlog_enable=NO
`, l.path("ftp")))
	g := l.program("ftp", spawnOptions{dies: true}, []string{"--offload-loopback"}, sh(fmt.Sprintf(`
%s %s & daemon=$!
curl -sS --retry 20 --retry-connrefused --retry-delay 1 --max-time 60 ftp://127.0.0.1/1k -o got-1k
curl -sS --max-time 60 ftp://127.0.0.1/1m -o got-1m ftp://127.0.0.1/16m -o got-16m
curl -sS --max-time 60 --ftp-port - ftp://127.0.0.1/16m -o got-active
curl -sS --max-time 60 ftp://127.0.0.1/ >list
kill $daemon
wait $daemon || true
`, debian(t, "/usr/sbin/vsftpd"), conf))...)
	g.finish(60*time.Second, 16)
	for got, name := range map[string]string{"got-1k": "1k", "got-1m": "1m", "got-16m": "16m", "got-active": "16m"} {
		if sum := fileSum(t, l.path(got)); sum != site.objects[name].Sum {
			t.Errorf("%s has sum %s, not %s", got, sum, site.objects[name].Sum)
		}
	}
	if list, err := os.ReadFile(l.path("list")); err != nil || strings.Count(string(list), "\n") != 3 {
		t.Errorf("the directory says %q (%v)", list, err)
	}
}
