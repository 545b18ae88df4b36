// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pno/crypto/signing"
)

func open(t testing.TB, path string, cfg Config) *Log {
	t.Helper()
	cfg.Path = path
	if cfg.Interval == 0 {
		cfg.Interval = time.Millisecond
	}
	l, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func sample(client string) Record {
	return Record{Time: time.Unix(1700000000, 0), Client: client, Key: signing.KeyID{1}, Scheme: signing.Ed25519,
		Input: signing.Message, Status: signing.OK, Micros: 12}
}

func verify(t testing.TB, paths ...string) (Summary, error) {
	t.Helper()
	var v Verifier
	for _, p := range paths {
		f, err := os.Open(p)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := v.Verify(filepath.Base(p), f); err != nil {
			return v.Summary, err
		}
	}
	return v.Summary, nil
}

func TestChainAcrossRestarts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	for range 3 {
		l := open(t, path, Config{})
		l.Add(sample("spiffe://pno/1"))
		l.Add(sample("quote \" and \n line"))
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	s, err := verify(t, path)
	if err != nil || s.Records != 6 || s.Lost != 0 || s.Last != 7 || s.Statuses["ok"] != 6 {
		t.Errorf("%v, %+v", err, s)
	}
	text, _ := os.ReadFile(path)
	for line := range strings.Lines(string(text)) {
		if !json.Valid([]byte(line)) {
			t.Errorf("not JSON: %s", line)
		}
	}
}

func TestTampering(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	l := open(t, path, Config{})
	for range 5 {
		l.Add(sample("spiffe://pno/1"))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	good, _ := os.ReadFile(path)
	lines := strings.SplitAfter(strings.TrimSuffix(string(good), "\n"), "\n")
	for name, change := range map[string]func() []string{
		"changed":    func() []string { l := slices.Clone(lines); l[2] = strings.Replace(l[2], "pno/1", "pno/2", 1); return l },
		"removed":    func() []string { return slices.Delete(slices.Clone(lines), 2, 3) },
		"beheaded":   func() []string { return lines[1:] },
		"swapped":    func() []string { l := slices.Clone(lines); l[1], l[2] = l[2], l[1]; return l },
		"repeated":   func() []string { return slices.Insert(slices.Clone(lines), 2, lines[2]) },
		"not a line": func() []string { return slices.Insert(slices.Clone(lines), 2, "{}\n") },
	} {
		if err := os.WriteFile(path, []byte(strings.Join(change(), "")), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := verify(t, path); err == nil {
			t.Errorf("%s: not noticed", name)
		}
	}
}

func TestTornLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	l := open(t, path, Config{})
	l.Add(sample("x"))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	f, _ := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	_, _ = f.WriteString(`{"seq":3,"ti`)
	f.Close()
	l = open(t, path, Config{})
	l.Add(sample("y"))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err := verify(t, path); err != nil || s.Torn != 12 || s.Records != 2 {
		t.Errorf("%v, %+v", err, s)
	}
}

// A file that is none of ours, as one that was named by mistake, is left alone.
func TestForeignFile(t *testing.T) {
	for _, text := range []string{"something else\n", "32 bytes of a KEK, without a line", "two\nlines", "\nX", strings.Repeat("long", 1<<16)} {
		path := filepath.Join(t.TempDir(), "a")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if l, err := Open(Config{Path: path}); err == nil {
			l.Close()
			t.Errorf("%.20q was continued", text)
		}
		if now, err := os.ReadFile(path); err != nil || string(now) != text {
			t.Errorf("%.20q was changed to %.20q, %v", text, now, err)
		}
	}
}

func TestLossIsCounted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	l := open(t, path, Config{Buffer: 10, Interval: time.Hour})
	for range 25 {
		l.Add(sample("x"))
	}
	many := sample("x")
	many.More = 99 // one that stands for others
	l.Add(many)
	if l.Lost() != 115 {
		t.Errorf("%d lost", l.Lost())
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err := verify(t, path); err != nil || s.Records != 10 || s.Lost != 115 {
		t.Errorf("%v, %+v", err, s)
	}
}

func TestRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	l := open(t, path, Config{MaxSize: 2000})
	const records = 40
	for i := range records {
		l.Add(sample("x"))
		if i%8 == 7 {
			time.Sleep(5 * time.Millisecond)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(path + ".*")
	if len(files) < 1 {
		t.Fatal("never rotated")
	}
	slices.Sort(files)
	if s, err := verify(t, append(files, path)...); err != nil || s.Records != records {
		t.Errorf("%v, %+v", err, s)
	}
	if _, err := verify(t, append(files[1:], path, files[0])...); err == nil {
		t.Error("a missing file was not noticed")
	}
}

// A disk without room at a rotation loses records, which are counted, but never
// the chain.
func TestFullDiskAtRotation(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to mount a small disk")
	}
	dir := t.TempDir()
	if err := syscall.Mount("audit", dir, "tmpfs", 0, "size=12k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, 0) })
	path, filler := filepath.Join(dir, "a"), filepath.Join(dir, "filler")
	l := open(t, path, Config{MaxSize: 2000})
	if err := os.WriteFile(filler, make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	added := uint64(0)
	for deadline := time.Now().Add(10 * time.Second); l.Lost() == 0 && time.Now().Before(deadline); added++ {
		l.Add(sample("x"))
		time.Sleep(2 * time.Millisecond)
	}
	if l.Lost() == 0 {
		t.Fatal("the disk was never full")
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	// The log begins a new file as soon as it can, in the room that is free now.
	l.Add(sample("y"))
	added++
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	files, err := l.former()
	if err != nil {
		t.Fatal(err)
	}
	s, err := verify(t, append(files, path)...)
	if err != nil || s.Records+s.Lost != added || s.Lost == 0 {
		t.Errorf("%d added: %v, %+v", added, err, s)
	}
}

// A crash between the renames of a rotation leaves the next file alone.
func TestCrashInRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	l := open(t, path, Config{})
	l.Add(sample("x"))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	next, _, err := l.beginNext()
	if err != nil {
		t.Fatal(err)
	}
	next.Close()
	old := path + "." + time.Now().UTC().Format(stampForm)
	if err := os.Rename(path, old); err != nil {
		t.Fatal(err)
	}
	l = open(t, path, Config{})
	l.Add(sample("y"))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err := verify(t, old, path); err != nil || s.Records != 2 {
		t.Errorf("%v, %+v", err, s)
	}
}

// Former files beyond the number to keep go, the oldest first, and the chain
// says which.
func TestKeep(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	l := open(t, path, Config{MaxSize: 500, Keep: 2})
	for range 40 {
		l.Add(sample("x"))
		time.Sleep(2 * time.Millisecond)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := l.former()
	if err != nil || len(files) != 2 {
		t.Fatalf("%v, %v", files, err)
	}
	if _, err := verify(t, append(files, path)...); err != nil {
		t.Error(err)
	}
	var all []byte
	for _, f := range append(files, path) {
		text, _ := os.ReadFile(f)
		all = append(all, text...)
	}
	if !bytes.Contains(all, []byte(`"deleted":"a.2`)) {
		t.Errorf("no word of it in the chain:\n%s", all)
	}
}

func FuzzVerify(f *testing.F) {
	path := filepath.Join(f.TempDir(), "a")
	l := open(f, path, Config{})
	l.Add(sample("x"))
	if err := l.Close(); err != nil {
		f.Fatal(err)
	}
	good, _ := os.ReadFile(path)
	f.Add(good)
	f.Fuzz(func(t *testing.T, data []byte) {
		var v Verifier
		if err := v.Verify("f", bytes.NewReader(data)); err == nil && v.Records > 1 {
			t.Fatal("more records than were ever written")
		}
	})
}

func BenchmarkAdd(b *testing.B) {
	l := open(b, filepath.Join(b.TempDir(), "a"), Config{Buffer: 1 << 20})
	r := sample("spiffe://pno/proxy/1")
	for range b.N {
		l.Add(r)
	}
	if err := l.Close(); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(l.Lost())/float64(b.N), "lost/op")
}

// A log that somebody moves away, as logrotate does, goes on under its name.
func TestMovedAway(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	l := open(t, path, Config{Interval: time.Hour})
	defer l.Close()
	add := func() error {
		l.Add(sample("spiffe://pno/1"))
		return l.drain(nil)
	}
	paths := []string{}
	for i, put := range []func() error{func() error { return nil }, func() error { return os.WriteFile(path, nil, 0o600) }} {
		if err := add(); err != nil {
			t.Fatal(err)
		}
		moved := path + "." + string(rune('0'+i))
		if err := os.Rename(path, moved); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, moved)
		if err := put(); err != nil {
			t.Fatal(err)
		}
		if err := add(); err != nil {
			t.Fatal(err)
		}
	}
	if s, err := verify(t, append(paths, path)...); err != nil || s.Records != 4 || s.Lost != 0 {
		t.Errorf("%v, %+v", err, s)
	}
	// What is there already belongs to somebody else.
	if err := os.Rename(path, path+".2"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := add(); err == nil || !strings.Contains(err.Error(), "another file") || l.Lost() != 1 {
		t.Errorf("%v, %d lost", err, l.Lost())
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := add(); err != nil {
		t.Fatal(err)
	}
	if s, err := verify(t, append(paths, path+".2", path)...); err != nil || s.Records != 5 || s.Lost != 1 {
		t.Errorf("%v, %+v", err, s)
	}
}

// Two programs would tear the chain: the second one does not begin, until the
// first has ended.
func TestOneWriter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit")
	first := open(t, path, Config{})
	first.Add(sample("a"))
	if _, err := Open(Config{Path: path}); err == nil || !strings.Contains(err.Error(), "another program writes it") {
		t.Errorf("a second writer: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second := open(t, path, Config{})
	second.Add(sample("b"))
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err := verify(t, path); err != nil || s.Records != 2 {
		t.Errorf("%+v, %v", s, err)
	}
}

// Whatever is found where the log should be: it is refused, or gone on with where it
// ends.
func FuzzResume(f *testing.F) {
	path := filepath.Join(f.TempDir(), "a")
	l := open(f, path, Config{})
	l.Add(sample("x"))
	if err := l.Close(); err != nil {
		f.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)-3])
	f.Add(append(bytes.Clone(good), "torn"...))
	f.Add([]byte("{}\n"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		fd, err := unix.MemfdCreate("audit", unix.MFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		file := os.NewFile(uintptr(fd), "audit")
		defer file.Close()
		if _, err := file.Write(data); err != nil {
			t.Fatal(err)
		}
		var l Log
		torn, err := l.resume(file)
		if end, _ := file.Seek(0, io.SeekEnd); torn < 0 || end != int64(len(data))-torn {
			t.Fatalf("%d bytes of %d are torn, and %d are left", torn, len(data), end)
		}
		var v Verifier
		if v.Verify("f", bytes.NewReader(data)) != nil || !bytes.HasSuffix(data, []byte("\n")) {
			return // a line without its end is torn
		}
		if err != nil || torn != 0 || l.seq != v.Last || hex.EncodeToString(l.head[:]) != v.Head {
			t.Fatalf("goes on after %d, %x; %v; the log ends with %+v", l.seq, l.head, err, v.Summary)
		}
	})
}
