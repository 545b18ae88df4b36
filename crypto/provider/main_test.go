// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"pno/crypto/provider/agenttest"
)

// moduleDir is where TestMain has built pno.so; conf makes programs load it.
var moduleDir, conf string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	for _, program := range []string{"make", "cc", "openssl"} {
		if _, err := exec.LookPath(program); err != nil {
			fmt.Printf("skipped: %v\n", err)
			return 0
		}
	}
	dir, err := os.MkdirTemp("", "pno-provider")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer os.RemoveAll(dir)
	if out, err := exec.Command("make", "all", "OUT="+dir).CombinedOutput(); err != nil {
		fmt.Printf("build the provider: %v\n%s", err, out)
		return 1
	}
	moduleDir, conf = dir, filepath.Join(dir, "openssl.cnf")
	err = os.WriteFile(conf, []byte(`openssl_conf = main
[main]
providers = providers
[providers]
default = d
pno = p
[d]
activate = 1
[p]
module = `+filepath.Join(dir, "pno.so")+`
activate = 1
[req]
distinguished_name = dn
[dn]
`), 0o600)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return m.Run()
}

// env makes a program find the provider and this agent.
func env(a *agenttest.Agent, more ...string) []string {
	return append(append(os.Environ(), "OPENSSL_CONF="+conf, "PNO_AGENT="+a.Path), more...)
}

// openssl runs the program to its end.
func openssl(t testing.TB, a *agenttest.Agent, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "openssl", args...)
	cmd.Env = env(a, "PNO_AGENT_TIMEOUT_MS=2000")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// must is openssl, and fails the test if the program does.
func must(t testing.TB, a *agenttest.Agent, args ...string) string {
	t.Helper()
	out, err := openssl(t, a, args...)
	if err != nil {
		t.Fatalf("openssl %v: %v\n%s", args, err, out)
	}
	return out
}
