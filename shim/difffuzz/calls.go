// SPDX-License-Identifier: Apache-2.0

package difffuzz

import "strings"

// calls holds what the model does for each of the player's calls. It returns
// false for a call that is not legal now: one that might block for ever, or
// whose result depends on time.
var calls = map[string]func(t *turn, op Op) bool{
	"socket":     doSocket,
	"bind":       doBind,
	"listen":     doListen,
	"connect":    doConnect,
	"disconnect": doDisconnect,
	"accept":     doAccept,
	"shutdown":   doShutdown,
	"close":      doClose,
	"dup":        doDup,
	"pass":       doPass,
	"nonblock":   doNonblock,
	"setsockopt": doSetsockopt,
	"getsockopt": doGetsockopt,
	"tcpinfo":    doTCPInfo,
	"sendto":     doSendto,
	"sockname":   doSockname,
	"peername":   doPeername,
	"getfl":      anywhere,
	"setfd":      anywhere,
	"fstat":      anywhere,
	"fionread":   anywhere,
	"pipe":       doPair,
	"unix":       doPair,
	"eventfd":    doEventfd,
	"epoll":      doEpoll,
	"ctl":        doCtl,
	"epwait":     doEpwait,
	"poll":       doPoll,
	"ppoll":      doPoll,
	"select":     doPoll,
	"pselect":    doPoll,
	"send":       doSend,
	"write":      doSend,
	"writev":     doSend,
	"sendmsg":    doSend,
	"sendmmsg":   doSend,
	"sendfile":   doSend,
	"recv":       doRecv,
	"recvfrom":   doRecv,
	"read":       doRecv,
	"readv":      doRecv,
	"recvmsg":    doRecv,
	"recvmmsg":   doRecv,
	"splice":     doSplice,
	"flood":      doFlood,
}

func anywhere(*turn, Op) bool { return true }

// unseen tells whether the peer's end of stream may be under way to who has
// shut both halves: nothing that can be waited for tells when it is there.
func unseen(d *desc) bool { return d.kind == connected && d.shutRead && d.shutWrite && d.eof }

// doSockname: where a refused connect came from the DPU does not tell:
// docs/compat.notes.md.
func doSockname(t *turn, op Op) bool {
	d := t.at(op, 1)
	return d == nil || d.kind != fresh || !d.reset || d.addr != ""
}

func doPeername(t *turn, op Op) bool {
	d := t.at(op, 1)
	return d == nil || !unseen(d)
}

func doSocket(t *turn, op Op) bool {
	d := &desc{kind: fresh, v6: strings.HasSuffix(op.word(2), "6"), nonblock: op.has(3, "nonblock")}
	if strings.HasPrefix(op.word(2), "udp") {
		d.kind = datagram
	}
	t.put(op, 1, d, nil)
	return true
}

// suits tells whether an address can be used by a socket of a family, so that
// the port is one the program knows.
func suits(d *desc, addr string) bool {
	return d.v6 == (addr == "any6" || addr == "lo6" || addr == "mapped")
}

func doBind(t *turn, op Op) bool {
	d := t.at(op, 1)
	if d != nil && unseen(d) {
		return false // over, or about to be
	}
	if d != nil && d.kind == datagram {
		return op.word(3) == "" && bindDatagram(t, op, d)
	}
	if op.word(3) != "" {
		// To the port of another, which is taken.
		p := t.slots[op.num(3)].port
		return p != nil && p.refs > 0 && p.kind == listening && p.addr == op.word(2) &&
			d != nil && !d.reuse && suits(d, op.word(2))
	}
	// A connection that is over has given its port back.
	gone := d != nil && d.kind == connected && !d.rebound && (d.reset || d.eof && d.shutWrite)
	if d == nil || !gone && (d.kind != fresh || d.bound) || !suits(d, op.word(2)) {
		return true
	}
	d.bound, d.rebound = true, gone
	d.addr = op.word(2)
	t.slots[op.num(1)].port = d
	return true
}

func doListen(t *turn, op Op) bool {
	d := t.at(op, 1)
	if d == nil {
		return true
	}
	if d.kind != fresh && d.kind != listening || d.untold {
		return true
	}
	if d.undone && !d.bound {
		return false // its address may be that of the listener it came from
	}
	if d.kind == fresh && !d.bound {
		d.bound = true
		if d.addr == "" {
			d.addr = "any4"
			if d.v6 {
				d.addr = "any6"
			}
		}
		for i := range t.slots {
			if t.slots[i].port == d {
				t.slots[i].port = nil // it is another now
			}
		}
	}
	d.kind = listening
	d.reset = false
	t.slots[op.num(1)].port = d
	return true
}

// reaches tells whether a connection to addr gets to what is bound to bound.
func reaches(addr, bound string) bool {
	switch bound {
	case "any4", "lo4":
		return addr == "lo4" || addr == "mapped"
	case "lo6":
		return addr == "lo6"
	case "mapped":
		return addr == "lo4" || addr == "mapped"
	}
	return true
}

func doConnect(t *turn, op Op) bool {
	d, target := t.at(op, 1), t.slots[op.num(2)].port
	if d != nil && d.kind == datagram {
		return connectDatagram(t, op, d)
	}
	if target == nil || target.kind == datagram {
		return false // no port is known
	}
	if d != nil && unseen(d) {
		return false // over, or about to be
	}
	if d != nil && d.untold {
		// Not a new attempt: how the one before went.
		d.untold = false
		if d.kind == connected && d.reset {
			old := *d
			*d = desc{kind: fresh, v6: d.v6, refs: d.refs, nonblock: d.nonblock, linger0: d.linger0, slow: d.slow,
				reuse: d.reuse, edgeWanted: d.edgeWanted, passed: d.passed, reset: true}
			if old.rebound {
				d.bound, d.addr = true, old.addr
			}
		}
		return true
	}
	if d == nil || d.kind == connected || d.kind == listening {
		return true
	}
	switch {
	case d.kind != fresh, !suits(d, op.word(3)), op.word(3) == "any4", op.word(3) == "any6":
		return false
	case d.addr != "" && !reaches(op.word(3), d.addr):
		return false // from where it cannot get there
	case target == d, d.undone && d.v6: // with itself; or what does not change between IPv4 and IPv6
		return false
	}
	d.reset = false
	if target.refs == 0 || target.kind != listening || !reaches(op.word(3), target.addr) {
		d.reset, d.untold = true, d.nonblock
		t.touch(d)
		return true
	}
	if len(target.pending) >= 3 || len(target.pending) > 0 && target.edgeWanted {
		return false // nothing would tell that the second has come
	}
	server := &desc{kind: connected, v6: target.v6, linger0: target.linger0, slow: target.slow, peer: d}
	target.pending = append(target.pending, server)
	d.kind = connected
	d.peer = server
	d.dialing, d.untold = true, d.nonblock
	t.touch(target)
	t.touch(d)
	return true
}

// doDisconnect: connect to no address. What it leaves is as good as new, but for
// the error of a connection that it has reset.
func doDisconnect(t *turn, op Op) bool {
	d := t.at(op, 1)
	if d == nil {
		return true
	}
	switch d.kind {
	case fresh:
		d.untold = false
	case listening:
		t.abandon(d)
		d.kind, d.bound, d.reset = fresh, false, true
	case connected:
		if unseen(d) || d.edgeWanted || d.passed || t.forked {
			return false
		}
		if d.peer != nil {
			t.kill(d.peer)
		}
		bound, addr := d.rebound, d.addr
		*d = desc{kind: fresh, v6: d.v6, refs: d.refs, nonblock: d.nonblock, linger0: d.linger0, slow: d.slow, reuse: d.reuse,
			reset: true, undone: true}
		if bound {
			d.bound, d.addr = true, addr
		}
	case datagram:
		if d.named || len(d.datagrams) > 0 {
			return false // a port that bind has given stays: docs/compat.notes.md
		}
		d.bound, d.addr, d.udpPeer = false, "", nil
	}
	return true
}

func doAccept(t *turn, op Op) bool {
	l := t.at(op, 1)
	if l == nil || l.kind != listening {
		return true
	}
	if l.slow || len(l.pending) == 0 && !l.nonblock {
		return false
	}
	if len(l.pending) == 0 {
		return true
	}
	t.before = t.settle(map[*desc]bool{l: true})
	d := l.pending[0]
	l.pending = l.pending[1:]
	d.nonblock = op.has(3, "nonblock")
	t.put(op, 2, d, nil)
	t.touch(d)
	t.touch(l)
	return true
}

func doShutdown(t *turn, op Op) bool {
	d, how := t.at(op, 1), op.word(2)
	if d == nil {
		return true
	}
	switch d.kind {
	case fresh:
		// It fails and shuts all the same, of which the shim knows nothing
		// once the socket was on the DPU: docs/compat.notes.md.
		return !d.bound && !d.reset
	case listening:
		if how != "wr" {
			// Its port was nobody's wish: the socket is as good as new.
			t.abandon(d)
			d.kind, d.bound, d.reset = fresh, false, true
		}
	case connected, stream:
		if unseen(d) || d.reset && d.untold || d.linger0 {
			return false
		}
		if d.edgeWanted {
			return false // the kernel makes an edge of it and of what the peer answers, which may be delayed
		}
		d.untold = false
		if d.reset || d.shutWrite && d.eof {
			return true // over
		}
		d.shutRead = d.shutRead || how != "wr"
		if how != "rd" && !d.shutWrite {
			d.shutWrite = true
			if d.peer != nil {
				d.peer.eof = true
				t.touch(d.peer)
			}
		}
		if d.kind == stream && how != "wr" && d.peer != nil {
			d.peer.shutWrite = true
		}
	case datagram:
		if !d.bound {
			return false // the kernel's socket is shut, and not what it becomes
		}
		d.shutRead = d.shutRead || how != "wr"
		d.shutWrite = d.shutWrite || how != "rd"
	}
	return true
}

func doClose(t *turn, op Op) bool {
	s := &t.slots[op.num(1)]
	if s.d != nil {
		t.release(s.d)
		s.d = nil
	}
	return true
}

func doDup(t *turn, op Op) bool {
	from, to := t.slots[op.num(1)], t.at(op, 2)
	if from.d == nil || op.num(1) == op.num(2) {
		return false
	}
	if into := op.word(3) == "dup2" || op.word(3) == "dup3"; into && to == nil {
		return false
	}
	t.put(op, 2, from.d, from.port)
	return true
}

func doPass(t *turn, op Op) bool {
	from := t.slots[op.num(1)]
	if from.d == nil || op.num(1) == op.num(2) {
		return false
	}
	if from.d.kind == poller {
		return false // the offloaded sockets of an instance are not passed with it: docs/compat.notes.md
	}
	from.d.passed = true
	t.put(op, 2, from.d, from.port)
	return true
}

func doNonblock(t *turn, op Op) bool {
	if d := t.at(op, 1); d != nil {
		d.nonblock = op.num(2) != 0
	}
	return true
}

func doPair(t *turn, op Op) bool {
	if op.num(1) == op.num(2) {
		return false
	}
	a, b := &desc{kind: pipeRead}, &desc{kind: pipeWrite}
	if op[0] == "unix" {
		a.kind, b.kind = stream, stream
	}
	a.nonblock, b.nonblock = op.has(3, "nonblock"), op.has(3, "nonblock")
	a.peer, b.peer = b, a
	t.put(op, 1, a, nil)
	t.put(op, 2, b, nil)
	return true
}

func doEventfd(t *turn, op Op) bool {
	t.put(op, 1, &desc{kind: event, nonblock: true}, nil)
	return true
}

func doEpoll(t *turn, op Op) bool {
	t.put(op, 1, &desc{kind: poller}, nil)
	return true
}

func doCtl(t *turn, op Op) bool {
	e, d := t.at(op, 1), t.at(op, 3)
	if e == nil || d == nil || e.kind != poller {
		return true
	}
	if (d.kind == listening || d.kind == fresh) && op.has(4, "in") {
		if d.watcher != nil && d.watcher != e {
			return false // a connection is told to one of two instances: docs/compat.notes.md
		}
		d.watcher = e
	}
	if op.has(4, "et") {
		if d.shutRead || d.shutWrite {
			return false // the same
		}
		d.edgeWanted = true
	}
	return true
}

// doEpwait: a socket that a child has used comes back a moment after the child
// has gone, for an instance that only waits for it.
func doEpwait(t *turn, op Op) bool { return !t.forked }

func doPoll(t *turn, op Op) bool {
	for i := 2; i < len(op); i += 2 {
		if d := t.at(op, i); d != nil && d.kind == poller && t.forked {
			return false
		}
	}
	return true
}

func doSend(t *turn, op Op) bool {
	d, n := t.at(op, 1), op.num(2)
	if d == nil {
		return true
	}
	switch d.kind {
	case connected:
		if d.reset && d.over {
			return false // as with doRecv
		}
		if d.peer == nil && (op[0] == "sendmmsg" || op[0] == "sendfile") {
			return false // the first part may cause a reset that meets the second
		}
		return t.sendTCP(d, n)
	case stream, pipeWrite:
		if d.peer == nil || d.kind == pipeWrite && op[0] != "write" && op[0] != "writev" && op[0] != "sendfile" {
			return true
		}
		if d.peer.unread+n > maxUnread {
			return false
		}
		if !d.shutWrite {
			d.peer.unread += n
		}
		return true
	case datagram:
		return sendDatagram(t, op, d)
	case event, poller, pipeRead:
		return n != 8 // eight bytes are a value to an eventfd
	}
	return true
}

func (t *turn) sendTCP(d *desc, n int) bool {
	p := d.peer
	switch {
	case d.shutWrite || d.reset || n == 0:
		return true
	case p == nil:
		// The other end is closed, which this will be told.
		t.kill(d)
		return true
	case p.shutRead && p.shutWrite:
		return false // the reset that it is answered with may be spared what comes at once: docs/compat.notes.md
	case p.unread+n > maxUnread:
		return false
	}
	p.unread += n
	t.touch(p)
	return true
}

// readable tells whether a read of n bytes returns at once, and how many it
// takes.
func readable(d *desc, n int, isRead, waitAll bool) (take int, atOnce bool) {
	take = min(n, d.unread)
	ended := d.eof || d.reset || d.shutRead
	switch {
	case ended:
		return take, true
	case waitAll:
		return take, d.unread >= n && d.unread > 0
	default:
		return take, d.unread > 0 || n == 0 && isRead
	}
}

func doRecv(t *turn, op Op) bool {
	d, n := t.at(op, 1), op.num(2)
	if d == nil {
		return true
	}
	if d.reset && d.over {
		return false // whether the reset met a connection that had ended is a matter of time
	}
	switch d.kind {
	case connected, stream, pipeRead:
		hasFlags := op[0] == "recv" || op[0] == "recvfrom" || op[0] == "recvmsg" || op[0] == "recvmmsg"
		nowait := d.nonblock || hasFlags && op.has(3, "dontwait")
		if hasFlags && d.kind == connected && op.has(3, "errqueue") {
			return true // nothing is there
		}
		take, atOnce := readable(d, n, !hasFlags, hasFlags && op.has(3, "waitall"))
		if !atOnce && !nowait || d.slow || op[0] == "recvmmsg" && n < 3 {
			return false
		}
		if d.kind == pipeRead && hasFlags {
			return true // ENOTSOCK
		}
		if !(hasFlags && op.has(3, "peek")) {
			d.unread -= take
		}
	case datagram:
		return recvDatagram(op, d)
	case event:
		return n < 8 || op[0] != "read" && op[0] != "readv"
	}
	return true
}

func doSplice(t *turn, op Op) bool {
	in, out, n := t.at(op, 1), t.at(op, 2), op.num(3)
	if in == nil || out == nil {
		return true
	}
	if (in.kind == connected) == (out.kind == connected) {
		return false
	}
	if in.kind == connected && out.kind == pipeWrite {
		if out.peer == nil || out.peer.unread+n > maxUnread || in.slow {
			return false
		}
		take, atOnce := readable(in, n, false, false)
		if !atOnce {
			return false
		}
		in.unread -= take
		out.peer.unread += take
		return true
	}
	if in.kind == pipeRead && out.kind == connected {
		if in.unread == 0 && (in.peer != nil || n == 0) {
			return false
		}
		take := min(n, in.unread)
		if out.shutWrite || out.reset || out.peer == nil {
			return false // what is lost of the pipe is not modelled
		}
		if !t.sendTCP(out, take) {
			return false
		}
		in.unread -= take
		return true
	}
	return false
}

func doFlood(t *turn, op Op) bool {
	a, b := t.at(op, 1), t.at(op, 2)
	return a != nil && b != nil && a.kind == connected && b.kind == connected && a.peer == b &&
		b.unread == 0 && !a.shutWrite && !b.shutRead && !b.slow && !a.slow
}
