// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"os/exec"
	"testing"
)

func TestHeaderIsCurrent(t *testing.T) {
	want, err := Header("../abi.go")
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("../../shim/abi.h")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("shim/abi.h differs from offload/abi.go: run make gen")
	}
}

func TestHeaderCompiles(t *testing.T) {
	cc, err := exec.LookPath("cc")
	if err != nil {
		t.Skip("no C compiler in PATH")
	}
	cmd := exec.Command(cc, "-std=c11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-x", "c", "../../shim/abi.h")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("the compiler refuses shim/abi.h: %v\n%s", err, out)
	}
}

func TestSnake(t *testing.T) {
	for in, want := range map[string]string{
		"RxWindow": "rx_window", "H2DProd": "h2d_prod", "D2HCons": "d2h_cons", "QPCtlSize": "qp_ctl_size",
		"SessionID": "session_id", "DBArm": "db_arm", "OpSend": "op_send", "IP": "ip", "StatusDPULost": "status_dpu_lost",
	} {
		if got := snake(in); got != want {
			t.Errorf("snake(%q) = %q, want %q", in, got, want)
		}
	}
}
