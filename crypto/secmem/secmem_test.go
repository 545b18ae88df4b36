// SPDX-License-Identifier: Apache-2.0

package secmem

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
)

func TestMove(t *testing.T) {
	secret := []byte("hunter2")
	b, err := Move(secret)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(secret, make([]byte, 7)) {
		t.Error("the secret is still where it was")
	}
	if string(b.Bytes()) != "hunter2" {
		t.Errorf("got %q", b.Bytes())
	}
	flags := vmFlags(t, b)
	for flag, what := range map[string]string{"lo": "locked", "dd": "left out of dumps", "wf": "wiped on fork"} {
		if !strings.Contains(flags, " "+flag) {
			t.Errorf("not %s: VmFlags:%s", what, flags)
		}
	}
	b.Free()
	b.Free()
}

// vmFlags is what the kernel says about the mapping.
func vmFlags(t *testing.T, b *Buffer) string {
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Skip(err)
	}
	_, rest, ok := strings.Cut(string(smaps), strings.TrimPrefix(fmt.Sprintf("%p-", b.mapped), "0x"))
	if !ok {
		t.Fatal("the mapping is not alone in its area")
	}
	_, rest, _ = strings.Cut(rest, "VmFlags:")
	flags, _, _ := strings.Cut(rest, "\n")
	return flags
}
