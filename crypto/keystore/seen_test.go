// SPDX-License-Identifier: Apache-2.0

package keystore

import (
	"bytes"
	"os"
	"testing"
	"time"
)

// A file that has not changed is not read again; one that has is, even if it is as
// long as before.
func TestListReadsChangesOnly(t *testing.T) {
	s := newStore(t, newKEK(t))
	key := secretOf(t, "P-256")
	e, err := s.Import(key, Options{Name: "first"})
	if err != nil {
		t.Fatal(err)
	}
	list := func() (n int) {
		t.Helper()
		all, err := s.List()
		if err != nil {
			t.Fatal(err)
		}
		if len(all) != 1 || all[0].Name != "first" {
			t.Fatalf("%v", all)
		}
		all[0].Name = "spoiled" // the caller's own
		return len(all)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		list()
		if s.seen.files[e.ID.String()+Suffix].entry != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the file is not remembered")
		}
	}
	if n := testing.AllocsPerRun(10, func() { list() }); n > 40 {
		t.Errorf("%.0f allocations to see that nothing has changed", n)
	}
	text, err := os.ReadFile(e.Path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(e.Path, bytes.Replace(text, []byte(`"first"`), []byte(`"other"`), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if all, err := s.List(); err != nil || len(all) != 1 || all[0].Name != "other" {
		t.Errorf("after a change: %v, %v", all, err)
	}
	if err := os.Remove(e.Path); err != nil {
		t.Fatal(err)
	}
	if all, err := s.List(); err != nil || len(all) != 0 || len(s.seen.files) != 0 {
		t.Errorf("after it was removed: %v, %v", all, err)
	}
}
