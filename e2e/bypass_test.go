// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// listenC listens by the C library, and waits to be ended.
const listenC = `
#include <arpa/inet.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>
int main(void)
{
	struct sockaddr_in sa = { .sin_family = AF_INET, .sin_port = htons(8081) };
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	if (fd < 0 || bind(fd, (struct sockaddr *)&sa, sizeof sa) || listen(fd, 5))
		return 1;
	puts("listening");
	fflush(stdout);
	pause();
	return 0;
}
`

// rawC does the same with system calls of its own.
const rawC = `
#include <arpa/inet.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
static long call3(long n, long a, long b, long c)
{
	long r;
#ifdef __x86_64__
	__asm__ volatile("syscall" : "=a"(r) : "0"(n), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
#else
	register long x8 __asm__("x8") = n, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2) : "memory");
	r = x0;
#endif
	return r;
}
int main(void)
{
	struct sockaddr_in sa = { .sin_family = AF_INET, .sin_port = htons(8081) };
	long fd = call3(SYS_socket, AF_INET, SOCK_STREAM, 0);

	if (fd < 0 || call3(SYS_bind, fd, (long)&sa, sizeof sa) || call3(SYS_listen, fd, 5, 0))
		return 1;
	puts("listening");
	fflush(stdout);
	pause();
	return 0;
}
`

const listenGo = `package main
import ("fmt"; "net"; "time")
func main() {
	l, err := net.Listen("tcp", ":8081")
	if err != nil { panic(err) }
	fmt.Println("listening", l.Addr())
	time.Sleep(time.Hour)
}
`

const clientGo = `package main
import ("fmt"; "time"; "pno/shim")
func main() {
	l, err := shim.Listen("tcp", ":8081")
	if err != nil { panic(err) }
	go func() {
		for {
			c, err := l.Accept()
			if err != nil { panic(err) }
			fmt.Fprintf(c, "hello")
			c.Close()
		}
	}()
	if _, err := (&shim.Dialer{Timeout: 10*time.Second}).Dial("tcp", "198.18.0.2:8081"); err != nil { panic(err) }
	fmt.Println("listening")
	time.Sleep(time.Hour)
}
`

func compileC(t *testing.T, source string, flags ...string) string {
	t.Helper()
	dir := t.TempDir()
	main, out := filepath.Join(dir, "main.c"), filepath.Join(dir, "listener")
	if err := os.WriteFile(main, []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	if b, err := exec.Command("gcc", append(flags, "-o", out, main)...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	return out
}

// setUserID makes a program another user's, and that user's rights its own.
func setUserID(t *testing.T, program string) string {
	t.Helper()
	if err := os.Chown(program, 1000, 1000); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(program, 0o755|os.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	return program
}

func compileGo(t *testing.T, source, cgo string) string {
	t.Helper()
	dir := t.TempDir()
	main, out := filepath.Join(dir, "main.go"), filepath.Join(dir, "listener")
	if err := os.WriteFile(main, []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "build", "-o", out, main)
	cmd.Env = append(os.Environ(), "CGO_ENABLED="+cgo)
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	return out
}

// TestBypass runs programs that the shim cannot see in the simulator: they are
// told of and counted, with what to do about it; those in order are not.
func TestBypass(t *testing.T) {
	for _, tt := range []struct {
		name, program string
		reason        string // empty: none
		told          bool   // when it starts, by pno
		shell         bool   // tried as a child of a shell, too
	}{
		{"dynamic C", compileC(t, listenC), "", false, false},
		{"static C", compileC(t, listenC, "-static"), "static", true, true},
		{"set-user-ID", setUserID(t, compileC(t, listenC)), "privileged", true, true},
		{"dynamic C, raw system calls", compileC(t, rawC), "raw", false, true},
		{"static Go", compileGo(t, listenGo, "0"), "go", true, false},
		{"dynamic Go", compileGo(t, listenGo, "1"), "go", true, false},
		{"static Go with the client", compileGo(t, clientGo, "0"), "", false, true},
		{"dynamic Go with the client", compileGo(t, clientGo, "1"), "", false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			t.Run("started by pno", func(t *testing.T) {
				t.Parallel()
				checkBypass(t, tt.program, tt.reason, tt.told)
			})
			if tt.shell {
				t.Run("started by a shell", func(t *testing.T) {
					t.Parallel()
					checkBypass(t, tt.program, tt.reason, false, "sh", "-c", `"$0" & wait`)
				})
			}
		})
	}
}

func checkBypass(t *testing.T, program, reason string, told bool, by ...string) {
	l := simLab(t)
	p := l.sim("sim", spawnOptions{}, []string{"-v"}, append(by, program)...)
	if !poll(30*time.Second, func() bool { return p.ended() || strings.Contains(p.logText(), "listening") }) || p.ended() {
		t.Fatalf("the program does not listen:\n%s", p.logText())
	}
	admin := ""
	for line := range strings.Lines(p.logText()) {
		if _, rest, ok := strings.Cut(line, "PNO_ADMIN_HOST="); ok {
			admin = strings.TrimSpace(rest)
		}
	}
	status := func() string {
		out, err := l.clientRun(10*time.Second, binary(t, "offloadctl"), "status", "--addr", "none", "--host-addr", admin)
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return out
	}
	notice := "(" + reason + "): "
	if reason == "" {
		time.Sleep(2 * time.Second) // several looks
		if s := status(); strings.Contains(s, "notice") {
			t.Errorf("a program in order is told of:\n%s", s)
		}
	} else if !poll(30*time.Second, func() bool {
		s := status()
		return strings.Contains(s, notice) && strings.Contains(s, "1 kernel socket")
	}) {
		t.Errorf("no notice:\n%s\n%s", status(), p.logText())
	}
	if n, want := strings.Count(p.logText(), "/listener is not offloaded: "), reason == "static" || reason == "privileged"; (n == 1) != (want && !told) {
		t.Errorf("the shim warns %d times:\n%s", n, p.logText())
	}
	if warned := strings.Contains(p.logText(), "pno sim: warning: not offloaded itself"); warned != told {
		t.Errorf("told at the start: %v, want %v", warned, told)
	}
	p.signal(15)
	_ = p.wait(10 * time.Second)
	var r struct {
		SocketsOffloaded uint64            `json:"sockets_offloaded"`
		SocketsKernel    map[string]uint64 `json:"sockets_kernel"`
		Host             struct {
			Agent struct {
				Bypassing map[string]uint64 `json:"bypassing"`
			} `json:"agent"`
		} `json:"host"`
	}
	content, err := os.ReadFile(l.path("sim.json"))
	if err == nil {
		err = json.Unmarshal(content, &r)
	}
	switch {
	case err != nil:
		t.Fatal(err)
	case reason == "" && (len(r.Host.Agent.Bypassing) > 0 || r.SocketsKernel["bypassed"] > 0 || r.SocketsOffloaded == 0):
		t.Errorf("counted %+v", r)
	case reason != "" && (r.Host.Agent.Bypassing[reason] != 1 || r.SocketsKernel["bypassed"] != 1 || r.SocketsOffloaded != 0):
		t.Errorf("counted %+v", r)
	}
}
