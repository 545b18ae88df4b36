// SPDX-License-Identifier: Apache-2.0

package host

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"pno/host/policy"
	"pno/host/report"
	"pno/internal/attach"
	"pno/internal/procnet"
	"pno/internal/target"
)

// A process that was to be offloaded can pass the offload by without anybody
// being told: the shim was not loaded into it, or it makes its system calls
// without libc. It shows by its environment, which names this hostd or the
// shim, and by kernel sockets that the policy would have offloaded.

const (
	bypassEvery   = 10 * time.Second
	bypassSeldom  = 10 * time.Minute // for processes that were found in order again and again
	maxBypassing  = 256              // that are shown
	maxPrograms   = 4096             // that are told of
	maxEnviron    = 1 << 17
	startSlack    = 100 * time.Millisecond // the kernel tells in ticks when a process began; and it would wait for a DPU longer than this
	libraryName   = "libpno.so"
	bypassSockets = "bypassed" // in Report.SocketsKernel
)

// bypasses is the look-out. run's goroutine owns known and environ; the rest is
// guarded by Server.mu.
type bypasses struct {
	s       *Server
	known   map[int]*suspect
	environ []byte // of the process looked at: one buffer for all that there are

	found    map[int]report.Bypass // living processes, by pid
	programs map[string]bool       // that shims have announced
	counts   map[string]uint64     // processes so far, by reason
	sockets  uint64                // of theirs, as they were found
}

// suspect is a process that has been looked at.
type suspect struct {
	exe     string
	meant   bool // to be offloaded
	policy  string
	sockets map[uint64]bool // that were suspicious at the last look
	next    time.Time       // when to look at it again
	pause   time.Duration
	told    bool
}

func newBypasses(s *Server) *bypasses {
	return &bypasses{s: s, known: map[int]*suspect{}, found: map[int]report.Bypass{}, programs: map[string]bool{}, counts: map[string]uint64{}}
}

func (b *bypasses) run(ctx context.Context) {
	tick := time.NewTicker(b.s.cfg.BypassEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			b.scan(now)
		}
	}
}

// scan looks at processes that are new, or due. Most are known, and cost the
// reading of one link.
func (b *bypasses) scan(now time.Time) {
	names, err := os.ReadDir("/proc")
	if err != nil {
		return
	}
	alive := make(map[int]bool, len(names))
	for _, n := range names {
		pid, err := strconv.Atoi(n.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		exe, err := os.Readlink(procFile(pid, "exe"))
		if err != nil {
			continue // a kernel thread, another user's, or gone
		}
		alive[pid] = true
		p := b.known[pid]
		if p == nil || p.exe != exe {
			// The next look is the first that counts: it may be just starting.
			b.known[pid] = &suspect{exe: exe, next: now, pause: b.s.cfg.BypassEvery}
			b.known[pid].meant, b.known[pid].policy = b.meant(pid)
			continue
		}
		if p.meant && !p.told && !now.Before(p.next) {
			b.look(pid, p, now)
		}
	}
	b.forget(alive)
}

func (b *bypasses) forget(alive map[int]bool) {
	for pid := range b.known {
		if !alive[pid] {
			delete(b.known, pid)
		}
	}
	b.s.mu.Lock()
	defer b.s.mu.Unlock()
	for pid := range b.found {
		if !alive[pid] {
			delete(b.found, pid)
		}
	}
}

func procFile(pid int, name string) string { return filepath.Join("/proc", strconv.Itoa(pid), name) }

// meant tells whether a process's environment sends it to this hostd, and the
// policy file that it names.
func (b *bypasses) meant(pid int) (yes bool, policyFile string) {
	if b.environ == nil {
		b.environ = make([]byte, maxEnviron)
	}
	env, err := readSome(procFile(pid, "environ"), b.environ)
	if err != nil {
		return false, ""
	}
	var hostd, preload string
	for v := range strings.SplitSeq(string(env), "\x00") {
		if rest, ok := strings.CutPrefix(v, "PNO_HOSTD="); ok {
			hostd = rest
		} else if rest, ok := strings.CutPrefix(v, "LD_PRELOAD="); ok {
			preload = rest
		} else if rest, ok := strings.CutPrefix(v, "PNO_POLICY_FILE="); ok {
			policyFile = rest
		}
	}
	if !strings.Contains(preload, libraryName) {
		return false, ""
	}
	return cmp.Or(hostd, attach.DefaultPath) == b.s.cfg.Listen, policyFile
}

// readSome reads what fits into buf.
func readSome(path string, buf []byte) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	n := 0
	for n < len(buf) {
		k, err := f.Read(buf[n:])
		n += k
		if err != nil || k == 0 {
			break
		}
	}
	return buf[:n], nil
}

// look examines a process, and tells about it once.
func (b *bypasses) look(pid int, p *suspect, now time.Time) {
	suspicious := b.suspicious(pid, p)
	both := 0
	for inode := range suspicious {
		if p.sockets[inode] {
			both++ // it has lasted
		}
	}
	if both -= b.excused(pid); both > 0 {
		p.told = true
		b.tell(pid, p, both)
		return
	}
	if p.sockets = suspicious; len(suspicious) == 0 {
		p.pause = min(2*p.pause, bypassSeldom)
	} else {
		p.pause = b.s.cfg.BypassEvery
	}
	p.next = now.Add(p.pause)
}

// suspicious are the process's kernel sockets that the policy would offload.
func (b *bypasses) suspicious(pid int, p *suspect) map[uint64]bool {
	sockets, err := procnet.Sockets(pid)
	if err != nil || len(sockets) == 0 {
		return nil
	}
	rules := b.rules(pid, p)
	listening := map[uint16]bool{}
	for _, s := range sockets {
		if s.Listening {
			listening[s.Local.Port()] = true
		}
	}
	out := map[uint64]bool{}
	for _, s := range sockets {
		op, at, proto := policy.Connect, s.Peer, policy.TCP
		if s.UDP {
			proto = policy.UDP
		}
		switch {
		case s.Listening || s.UDP && s.Peer.Port() == 0:
			op, at = policy.Listen, s.Local
		case !s.UDP && listening[s.Local.Port()]:
			continue // accepted: its listener tells
		}
		action := rules.Default
		if r, ok := rules.Match(op, proto, at); ok {
			action = r.Action
		}
		if action == policy.Offload {
			out[s.Inode] = true
		}
	}
	return out
}

// rules is the policy of the process.
func (b *bypasses) rules(pid int, p *suspect) policy.Compiled {
	b.s.mu.Lock()
	name := filepath.Base(p.exe)
	pol := b.s.policy
	for _, x := range b.s.sessions {
		if x.peer.PID == pid {
			name = x.name
			if x.runPolicy != nil {
				pol = x.runPolicy
			}
		}
	}
	b.s.mu.Unlock()
	var st unix.Stat_t
	if p.policy != "" && unix.Stat(procFile(pid, ""), &st) == nil {
		if own, _, err := b.s.policyFor(attach.Peer{PID: pid, UID: int(st.Uid)}, p.policy, ""); err == nil {
			pol = own
		}
	}
	return pol.Compile(name)
}

// excused is how many kernel sockets the process has for reasons that the shim
// knows of; all of them, if it may have begun without a DPU.
func (b *bypasses) excused(pid int) int {
	const all = 1 << 30
	link := b.s.link.Status()
	b.s.mu.Lock()
	defer b.s.mu.Unlock()
	for _, x := range b.s.sessions {
		if x.peer.PID != pid {
			continue
		}
		values := x.mem.counters(len(shimCounters))
		n := kernelTotal(values)
		if x.attached.After(b.s.loaded) {
			n -= min(n, values[counterIndex["sockets_kernel_policy"]]) // the same policy: none of those is suspicious
		}
		return int(min(n, all))
	}
	began := startTime(pid)
	if !began.IsZero() {
		began = began.Add(startSlack)
	}
	if began.IsZero() || began.Before(link.Since) || began.Before(b.s.began) {
		return all
	}
	return 0
}

// startTime is when a process started.
func startTime(pid int) time.Time {
	var up unix.Timespec
	ticks := startOf(pid)
	if ticks == 0 || unix.ClockGettime(unix.CLOCK_BOOTTIME, &up) != nil {
		return time.Time{}
	}
	const perSecond = 100 // USER_HZ, on every Linux machine that we run on
	return time.Now().Add(time.Duration(ticks)*time.Second/perSecond - time.Duration(up.Nano()))
}

// reasonOf is why the shim did not see the sockets.
func reasonOf(pid int) target.Reason {
	var e *target.Error
	if err := target.Check(procFile(pid, "exe")); errors.As(err, &e) && e.Reason != "" {
		return e.Reason
	}
	if target.IsGo(procFile(pid, "exe")) {
		return target.Go // it has the client, and uses package net all the same
	}
	if secure(pid) {
		return target.Privileged
	}
	if maps, err := os.ReadFile(procFile(pid, "maps")); err == nil && !strings.Contains(string(maps), "/"+libraryName) {
		return target.NotLoaded
	}
	return target.Raw
}

// secure tells whether the loader ignored LD_PRELOAD.
func secure(pid int) bool {
	const atSecure = 23
	auxv, err := os.ReadFile(procFile(pid, "auxv"))
	for ; err == nil && len(auxv) >= 16; auxv = auxv[16:] {
		if binary.NativeEndian.Uint64(auxv) == atSecure {
			return binary.NativeEndian.Uint64(auxv[8:]) != 0
		}
	}
	return false
}

func (b *bypasses) tell(pid int, p *suspect, sockets int) {
	b.note(report.Bypass{PID: pid, Name: attach.Text([]byte(filepath.Base(p.exe))), Reason: string(reasonOf(pid)), Sockets: sockets})
}

// announced is told by a shim what its process is about to become. The answer
// is EALREADY for a program that was heard of before: it is said only once.
func (b *bypasses) announced(peer attach.Peer, m *attach.Bypass) unix.Errno {
	reason := map[uint32]target.Reason{
		attach.BypassStatic: target.Static, attach.BypassPrivileged: target.Privileged, attach.BypassMachine: target.Machine,
	}[m.Reason]
	program := attach.Text(m.Program[:])
	b.s.mu.Lock()
	heard := b.programs[program] || len(b.programs) >= maxPrograms
	if !heard {
		b.programs[program] = true
	}
	b.s.mu.Unlock()
	r := report.Bypass{PID: peer.PID, Name: filepath.Base(program), Reason: string(reason)}
	if heard {
		b.count(r)
		return unix.EALREADY
	}
	b.note(r)
	return 0
}

// NoteBypass is told by who starts a process that the shim will not be in it.
func (s *Server) NoteBypass(pid int, name string, reason target.Reason) {
	s.bypass.note(report.Bypass{PID: pid, Name: name, Reason: string(reason)})
}

// note counts and logs a process that passes the offload by.
func (b *bypasses) note(r report.Bypass) {
	if known := b.count(r); known {
		return
	}
	b.s.log.Warn("process passes the offload by", "pid", r.PID, "process", r.Name, "reason", r.Reason,
		"kernel_sockets", r.Sockets, "advice", target.Reason(r.Reason).Advice())
}

// count tells whether the process was known before.
func (b *bypasses) count(r report.Bypass) (known bool) {
	r.Since, r.Advice = time.Now(), target.Reason(r.Reason).Advice()
	b.s.mu.Lock()
	defer b.s.mu.Unlock()
	_, known = b.found[r.PID]
	if !known {
		b.counts[r.Reason]++
	}
	b.sockets += uint64(r.Sockets)
	if known || len(b.found) < maxBypassing {
		b.found[r.PID] = r
	}
	return known
}

// report is what is found now. Server.mu is held.
func (b *bypasses) report() []report.Bypass {
	return slices.SortedFunc(maps.Values(b.found), func(a, c report.Bypass) int { return cmp.Compare(a.PID, c.PID) })
}
