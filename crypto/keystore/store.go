// SPDX-License-Identifier: Apache-2.0

package keystore

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"pno/crypto/secmem"
	"pno/crypto/signing"
)

// Suffix ends the name of every key file; what comes before is the key's id.
const Suffix = ".pnokey"

// Bounds of what is read.
const (
	maxFile  = 64 << 10
	maxName  = 128
	fileForm = 1
)

// Meta is what is known about a key without opening it.
type Meta struct {
	Form      int       `json:"form"`
	Name      string    `json:"name"`
	SPKI      []byte    `json:"spki"`
	Created   time.Time `json:"created"`
	Expires   time.Time `json:"expires,omitzero"` // of a sealed copy on a proxy
	TLS13Only bool      `json:"tls13_only,omitempty"`
	KEK       string    `json:"kek"`
}

// file is the form on disk: Meta and, bound to it, the sealed key.
type file struct {
	Meta
	WrappedDEK []byte `json:"wrapped_dek"`
	Sealed     []byte `json:"sealed"`
}

// Entry is a key of the store, closed.
type Entry struct {
	Meta
	ID     signing.KeyID
	Public crypto.PublicKey
	Path   string
	file   file
}

// Expired tells whether the key may no longer be used.
func (e *Entry) Expired(now time.Time) bool { return !e.Expires.IsZero() && now.After(e.Expires) }

// Secret is an opened key: PKCS #8 in locked memory.
type Secret struct{ *secmem.Buffer }

// Close wipes it.
func (s Secret) Close() { s.Free() }

// Store is a directory of keys.
type Store struct {
	dir  string
	kek  KEK
	seen *seen
}

// ErrNotFound is wrapped for a key that is not in the store, ErrExists for one
// that is, ErrName for the name of another, ErrOtherKEK for a key that this KEK
// does not open.
var (
	ErrOtherKEK = errors.New("the KEK does not open it")
	ErrNotFound = errors.New("no such key")
	ErrExists   = errors.New("the key is in the store already")
	ErrName     = errors.New("names are unique")
)

// Open names a store. The KEK stays the caller's; without one nothing can be
// opened or added, but listed.
func Open(dir string, kek KEK) (*Store, error) {
	info, err := os.Stat(dir)
	if err == nil {
		err = checkFolder(info)
	}
	if err != nil {
		return nil, fmt.Errorf("open key store %s: %w", dir, err)
	}
	return &Store{dir: dir, kek: kek, seen: new(seen)}, nil
}

// checkFolder wants a folder that nobody else can write in. What is in it is
// sealed, but whoever writes there can remove keys, and put back old ones.
func checkFolder(info fs.FileInfo) error {
	if !info.IsDir() {
		return errors.New("not a folder")
	}
	if mode := info.Mode().Perm(); mode&0o022 != 0 {
		return fmt.Errorf("others may write in it (mode %#o); chmod 700 it", mode)
	}
	me := os.Geteuid()
	if st, ok := info.Sys().(*syscall.Stat_t); ok && me != 0 && st.Uid != 0 && int(st.Uid) != me {
		return fmt.Errorf("it belongs to user %d, who may change it; this is user %d", st.Uid, me)
	}
	return nil
}

// WithKEK is the same store with another KEK.
func (s *Store) WithKEK(kek KEK) *Store { return &Store{s.dir, kek, s.seen} }

// aad is what the seals are bound to.
func (m *Meta) aad(id signing.KeyID) ([]byte, error) {
	text, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	return append(append([]byte("pno key "), id[:]...), text...), nil
}

// List returns the keys in order of their names. The error joins one for each
// file that cannot be read; the others are listed all the same.
func (s *Store) List() ([]*Entry, error) {
	files, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("list key store: %w", err)
	}
	var out []*Entry
	var errs []error
	s.seen.mu.Lock()
	defer s.seen.mu.Unlock()
	now := make(map[string]seenFile, len(files))
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), Suffix) {
			continue
		}
		e, err := s.look(f.Name(), now)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		out = append(out, e)
	}
	s.seen.files = now
	slices.SortFunc(out, func(a, b *Entry) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), bytes.Compare(a.ID[:], b.ID[:]))
	})
	return out, errors.Join(errs...)
}

func (s *Store) read(path string) (*Entry, error) {
	// Not blocking: a named pipe must not hold up the look at the others.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(fmt.Errorf("read key %s: not a regular file", path), err)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	e, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("read key %s: %w", path, err)
	}
	if want := e.ID.String() + Suffix; filepath.Base(path) != want {
		return nil, fmt.Errorf("read key %s: it is the file of another key, %s", path, want)
	}
	e.Path = path
	return e, nil
}

// parse decodes a key file, which anyone may have written.
func parse(data []byte) (*Entry, error) {
	if len(data) > maxFile {
		return nil, fmt.Errorf("longer than %d bytes", maxFile)
	}
	var f file
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		return nil, fmt.Errorf("not a key file: %w", err)
	}
	switch {
	case f.Form != fileForm:
		return nil, fmt.Errorf("form %d of key files, this program knows %d", f.Form, fileForm)
	case checkName(f.Name) != nil:
		return nil, checkName(f.Name)
	}
	pub, err := x509.ParsePKIXPublicKey(f.SPKI)
	if err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	return &Entry{Meta: f.Meta, ID: signing.IDOf(f.SPKI), Public: pub, file: f}, nil
}

func checkName(name string) error {
	bad := func(r rune) bool { return r < ' ' || r == 0x7f }
	if name == "" || len(name) > maxName || strings.ContainsFunc(name, bad) {
		return fmt.Errorf("%q is not a name for a key; it has 1 to %d bytes and no control characters", name, maxName)
	}
	if name == "*" {
		return errors.New(`"*" is not a name for a key: access rules mean every key by it`)
	}
	return nil
}

// Gone tells whether a key has no file in the store. One whose file cannot be
// read, or looked at, is not gone.
func (s *Store) Gone(id signing.KeyID) bool {
	_, err := os.Lstat(filepath.Join(s.dir, id.String()+Suffix))
	return errors.Is(err, fs.ErrNotExist)
}

// Find returns the key with this id, or the only one with this name, or the only
// one whose id begins with it.
func (s *Store) Find(ref string) (*Entry, error) {
	all, errList := s.List()
	var named, begun []*Entry
	for _, e := range all {
		switch id := e.ID.String(); {
		case id == ref:
			return e, nil
		case e.Name == ref:
			named = append(named, e)
		case len(ref) >= 8 && strings.HasPrefix(id, ref):
			begun = append(begun, e)
		}
	}
	switch {
	case len(named) == 1:
		return named[0], nil
	case len(named) > 1:
		return nil, fmt.Errorf("%q is the name of %d keys, %v and %v among them; give the id", ref, len(named), named[0].ID, named[1].ID)
	case len(begun) == 1:
		return begun[0], nil
	case len(begun) > 1:
		return nil, fmt.Errorf("%q begins the ids of %d keys; write more of it", ref, len(begun))
	}
	return nil, errors.Join(fmt.Errorf("%q: %w", ref, ErrNotFound), errList)
}

// Options are what Import is told about a key.
type Options struct {
	Name      string
	TLS13Only bool
	Expires   time.Time
}

// Import seals a key and adds it. The secret stays the caller's.
func (s *Store) Import(key Secret, opts Options) (*Entry, error) {
	if err := checkName(opts.Name); err != nil {
		return nil, err
	}
	pub, err := publicOf(key.Bytes())
	if err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, fmt.Errorf("encode public key: %w", err)
	}
	e := &Entry{ID: signing.IDOf(spki), Public: pub, Meta: Meta{Form: fileForm, Name: opts.Name, SPKI: spki,
		Created: time.Now().UTC().Truncate(time.Second), Expires: opts.Expires.UTC().Truncate(time.Second), TLS13Only: opts.TLS13Only}}
	e.Path = filepath.Join(s.dir, e.ID.String()+Suffix)
	if _, err := os.Lstat(e.Path); err == nil {
		return nil, fmt.Errorf("import %v: %w", e.ID, ErrExists)
	}
	if err := s.checkFree(opts.Name); err != nil {
		return nil, err
	}
	return e, s.write(e, key)
}

// checkFree wants a name that means one key: access rules and commands take it
// for a key's name or id alike. A file that cannot be read has no name to
// collide with.
func (s *Store) checkFree(name string) error {
	if b, err := hex.DecodeString(name); err == nil && len(b) == len(signing.KeyID{}) {
		return fmt.Errorf("import %q: that is the form of a key's id, not a name", name)
	}
	all, _ := s.List()
	for _, e := range all {
		if e.Name == name {
			return fmt.Errorf("import %q: the name is taken by key %v: %w; remove that one first, or choose another name", name, e.ID, ErrName)
		}
	}
	return nil
}

// write seals with the store's KEK and a fresh key, and replaces the file.
func (s *Store) write(e *Entry, key Secret) error {
	if s.kek == nil {
		return errors.New("seal key: the store was opened without a KEK")
	}
	e.KEK = s.kek.ID()
	aad, err := e.aad(e.ID)
	if err != nil {
		return fmt.Errorf("seal key: %w", err)
	}
	dek := make([]byte, kekLen)
	rand.Read(dek)
	defer clear(dek)
	sealed, err := seal(dek, key.Bytes(), aad)
	if err != nil {
		return fmt.Errorf("seal key: %w", err)
	}
	wrapped, err := s.kek.Wrap(dek, aad)
	if err != nil {
		return fmt.Errorf("seal key with KEK %s: %w", s.kek.ID(), err)
	}
	e.file = file{Meta: e.Meta, WrappedDEK: wrapped, Sealed: sealed}
	text, err := json.MarshalIndent(e.file, "", "  ")
	if err != nil {
		return fmt.Errorf("encode key file: %w", err)
	}
	return replace(e.Path, append(text, '\n'))
}

// replace writes a file so that a reader, or a machine that loses power, sees
// the old one or the new one.
func replace(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".pnokey-*")
	if err != nil {
		return fmt.Errorf("write key file: %w", err)
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name()) // the write is the error to tell
		return fmt.Errorf("write key file: %w", err)
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("write key store: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("write key store: %w", err)
	}
	return nil
}

// Unseal opens a key.
func (s *Store) Unseal(e *Entry) (Secret, error) {
	fail := func(err error) (Secret, error) { return Secret{}, fmt.Errorf("open key %s: %w", e.Name, err) }
	switch {
	case s.kek == nil:
		return fail(errors.New("the store was opened without a KEK"))
	case s.kek.ID() != e.KEK:
		return fail(fmt.Errorf("it is sealed with KEK %s, this one is %s: %w", e.KEK, s.kek.ID(), ErrOtherKEK))
	case e.Expired(time.Now()):
		return fail(fmt.Errorf("it expired at %s", e.Expires.Format(time.RFC3339)))
	}
	aad, err := e.aad(e.ID)
	if err != nil {
		return fail(err)
	}
	dek, err := s.kek.Unwrap(e.file.WrappedDEK, aad)
	if err != nil {
		return fail(err)
	}
	defer clear(dek)
	buf, err := unsealInto(dek, e.file.Sealed, aad)
	if err != nil {
		return fail(err)
	}
	// The file names the public key; the private one must be its other half.
	if !matches(buf.Bytes(), e.Public) {
		buf.Free()
		return fail(errors.New("it is not the key that the file names"))
	}
	return Secret{buf}, nil
}

// Rotate seals every key anew, with a fresh key and another KEK. Keys under that
// one already are passed by, so that a rotation that was interrupted can be
// run again. It returns how many it changed.
func (s *Store) Rotate(to KEK) (int, error) {
	all, err := s.List()
	if err != nil {
		return 0, err
	}
	next := s.WithKEK(to)
	n := 0
	for _, e := range all {
		if e.KEK == to.ID() {
			continue
		}
		key, err := s.Unseal(e)
		if err != nil {
			return n, err
		}
		err = next.write(e, key)
		key.Close()
		if err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// Remove deletes a key's file. What the disk kept of it is sealed.
func (s *Store) Remove(e *Entry) error {
	if err := os.Remove(e.Path); err != nil {
		return fmt.Errorf("remove key: %w", err)
	}
	return syncDir(s.dir)
}
