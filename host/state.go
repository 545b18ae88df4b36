// SPDX-License-Identifier: Apache-2.0

package host

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"pno/internal/attach"
	"pno/offload"
)

// A hostd that is killed must not take the running sessions with it. What the
// next one needs to find them again is kept in a directory: one file a session,
// one a fork whose child has not attached. A process may be idle for days and
// never speak to hostd in that time, so it is not asked to come back.
//
// Files are written by one goroutine, soon after the change, whole and by
// rename. A file tells about one process, named by pid and start time.

// savedSession is a session's file.
type savedSession struct {
	Version    int                           `json:"version"`
	ID         uint64                        `json:"id,string"`
	PID        int                           `json:"pid"`
	Start      uint64                        `json:"start"` // of the process, in ticks since boot
	UID        int                           `json:"uid"`
	GID        int                           `json:"gid"`
	Name       string                        `json:"name"`
	Policy     string                        `json:"policy"`
	Attached   time.Time                     `json:"attached"`
	Layout     offload.Layout                `json:"layout"`
	Interrupts map[int]uint64                `json:"interrupts"` // eventfd-id by channel
	Exec       bool                          `json:"exec,omitempty"`
	Sockets    map[uint64]*attach.SocketInfo `json:"sockets,omitempty"`
}

// savedGrant is the file of a fork.
type savedGrant struct {
	Version int                           `json:"version"`
	Token   string                        `json:"token"`
	PID     int                           `json:"pid"`
	Start   uint64                        `json:"start"`
	Sockets map[uint64]*attach.SocketInfo `json:"sockets,omitempty"`
}

const stateVersion = 1

// state writes the files. A nil *state, for a hostd without a directory, keeps
// nothing.
type state struct {
	dir  string
	lock *os.File // held while this hostd lives
	log  func(error)

	mu    sync.Mutex
	dirty map[string]func() ([]byte, error) // by file name; nil bytes remove the file
	wake  chan struct{}
}

func newState(dir string, log func(error)) (*state, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the state directory: %w", err)
	}
	if err := checkOwn(dir); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the state directory: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		return nil, fmt.Errorf("state directory %s belongs to another hostd that runs; give each its own: %w", dir, err)
	}
	return &state{dir: dir, lock: lock, log: log, dirty: make(map[string]func() ([]byte, error)), wake: make(chan struct{}, 1)}, nil
}

// checkOwn refuses a directory that somebody else could have prepared: what its
// files say is believed.
func checkOwn(dir string) error {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return fmt.Errorf("look at the state directory %s: %w", dir, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		return fmt.Errorf("state directory %s must be a directory of uid %d that nobody else may write; it has mode %o and uid %d: remove it, or name another one",
			dir, os.Geteuid(), st.Mode, st.Uid)
	}
	return nil
}

// set notes that a file has to be written; make is called later, by run.
func (st *state) set(name string, make func() ([]byte, error)) {
	if st == nil {
		return
	}
	st.mu.Lock()
	st.dirty[name] = make
	st.mu.Unlock()
	select {
	case st.wake <- struct{}{}:
	default:
	}
}

func (st *state) remove(name string) {
	st.set(name, func() ([]byte, error) { return nil, nil })
}

// run writes until stop is closed, and then what is left. It gives the directory
// free.
func (st *state) run(stop <-chan struct{}) {
	defer st.lock.Close()
	for last := false; ; {
		st.flush()
		if last {
			return
		}
		select {
		case <-st.wake:
		case <-stop:
			last = true
		}
	}
}

func (st *state) flush() {
	st.mu.Lock()
	dirty := st.dirty
	st.dirty = make(map[string]func() ([]byte, error))
	st.mu.Unlock()
	for name, make := range dirty {
		if err := st.write(name, make); err != nil {
			st.log(err)
		}
	}
}

func (st *state) write(name string, make func() ([]byte, error)) error {
	b, err := make()
	if err != nil {
		return fmt.Errorf("keep state %s: %w", name, err)
	}
	path := filepath.Join(st.dir, name)
	if b == nil {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove state: %w", err)
		}
		return nil
	}
	tmp := filepath.Join(st.dir, ".new")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("keep state: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("keep state: %w", err)
	}
	return nil
}

// load reads every file. What cannot be understood is removed: another version
// wrote it, and its sessions end by themselves at the DPU.
func (st *state) load() (sessions []*savedSession, grants []*savedGrant) {
	names, err := os.ReadDir(st.dir)
	if err != nil {
		st.log(fmt.Errorf("read state: %w", err))
		return nil, nil
	}
	for _, n := range names {
		if n.Name()[0] == '.' {
			continue
		}
		path := filepath.Join(st.dir, n.Name())
		b, err := os.ReadFile(path)
		if err != nil {
			st.log(fmt.Errorf("read state: %w", err))
			continue
		}
		s, g := new(savedSession), new(savedGrant)
		switch {
		case strings.HasPrefix(n.Name(), "session-") && json.Unmarshal(b, s) == nil && s.Version == stateVersion && s.Layout.Check() == nil:
			sessions = append(sessions, s)
		case strings.HasPrefix(n.Name(), "fork-") && json.Unmarshal(b, g) == nil && g.Version == stateVersion:
			grants = append(grants, g)
		default:
			st.log(fmt.Errorf("state file %s is not understood, removing it", path))
			_ = os.Remove(path)
		}
	}
	return sessions, grants
}

func sessionFile(id uint64) string  { return fmt.Sprintf("session-%016x", id) }
func grantFile(token string) string { return "fork-" + token }

// saveSession and saveGrant are called with mu held, after a change.
func (s *Server) saveSession(x *session) {
	s.state.set(sessionFile(x.id), func() ([]byte, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if x.ended || x.lost {
			return nil, nil
		}
		out := savedSession{Version: stateVersion, ID: x.id, PID: x.peer.PID, Start: x.start, UID: x.peer.UID, GID: x.peer.GID,
			Name: x.name, Policy: x.policyFrom, Attached: x.attached, Layout: x.layout, Interrupts: make(map[int]uint64),
			Exec: x.kept != nil, Sockets: x.sockets}
		for n, fd := range x.intr {
			if fd >= 0 {
				out.Interrupts[n] = eventID("/proc/self/fdinfo/" + strconv.Itoa(fd))
			}
		}
		return json.Marshal(out)
	})
}

func (s *Server) saveGrant(g *grant) {
	s.state.set(grantFile(g.token), func() ([]byte, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.grants[g.token] != g {
			return nil, nil
		}
		return json.Marshal(savedGrant{stateVersion, g.token, g.pid, g.start, g.sockets})
	})
}

// eventID returns the number by which the kernel knows an eventfd, the same in
// every process that has it; 0 if the file is none.
func eventID(fdinfo string) uint64 {
	b, err := os.ReadFile(fdinfo)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "eventfd-id:"); ok {
			id, err := strconv.ParseUint(strings.TrimSpace(v), 10, 64)
			if err == nil {
				return id + 1 // the first one is 0
			}
		}
	}
	return 0
}

// statFields returns the fields of /proc/PID/stat after the name, nil when the
// process is gone.
func statFields(pid int) []string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return nil
	}
	// The name, in brackets, may hold anything: the fields begin after the last.
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(f) < 20 {
		return nil
	}
	return f
}

// parentOf returns the parent's pid of a process, 0 when it is gone.
func parentOf(pid int) int {
	f := statFields(pid)
	if f == nil {
		return 0
	}
	ppid, err := strconv.Atoi(f[1])
	if err != nil {
		return 0
	}
	return ppid
}

// startOf returns when a process began, 0 when it is gone: with the pid, its
// name for ever.
func startOf(pid int) uint64 {
	f := statFields(pid)
	if f == nil {
		return 0
	}
	start, err := strconv.ParseUint(f[19], 10, 64)
	if err != nil {
		return 0
	}
	return start
}
