// SPDX-License-Identifier: Apache-2.0

package difffuzz

// Datagrams. A socket has at most one in its queue, for nothing tells when a
// second one has come.

// bindDatagram: what is bound once stays so.
func bindDatagram(t *turn, op Op, d *desc) bool {
	if !d.bound && suits(d, op.word(2)) {
		d.bound, d.named, d.addr = true, true, op.word(2)
		t.slots[op.num(1)].port = d
	}
	return true
}

// autobind is what a socket becomes that sends or connects without a name.
func autobind(d *desc) {
	if d.bound {
		return
	}
	d.bound, d.addr = true, "any4"
	if d.v6 {
		d.addr = "any6"
	}
}

// hears tells whether to is there to get a datagram of d's.
func hears(d, to *desc, addr string) bool {
	return to != nil && to.kind == datagram && to.refs > 0 && to.bound && suits(d, addr) &&
		addr != "any4" && addr != "any6" && reaches(addr, to.addr) && (d.addr == "" || reaches(addr, d.addr))
}

func connectDatagram(t *turn, op Op, d *desc) bool {
	to := t.slots[op.num(2)].port
	if !hears(d, to, op.word(3)) || to == d {
		return false // it may be refused, which is told a moment later
	}
	autobind(d)
	d.addr = op.word(3)
	d.udpPeer, d.udpAddr = to, op.word(3)
	return true
}

// datagramTo is a datagram of n bytes under way.
func datagramTo(t *turn, d, to *desc, addr string, n int) bool {
	if !hears(d, to, addr) || len(to.datagrams) > 0 || to == d {
		return false
	}
	autobind(d)
	if to.udpPeer != nil && to.udpPeer != d {
		return true // who is connected hears nobody else
	}
	to.datagrams = append(to.datagrams, n)
	t.touch(to)
	return true
}

// doSendto: send to a port that a program knows.
func doSendto(t *turn, op Op) bool {
	d, to := t.at(op, 1), t.slots[op.num(2)].port
	if d == nil {
		return true
	}
	switch {
	case to == nil:
		return false
	case d.kind == connected:
		return d.peer != nil && t.sendTCP(d, op.num(4)) // the address does not matter
	case d.kind != datagram:
		return d.kind == fresh || d.kind == listening
	case d.shutWrite:
		return d.bound // EPIPE
	}
	return datagramTo(t, d, to, op.word(3), op.num(4))
}

func sendDatagram(t *turn, op Op, d *desc) bool {
	switch {
	case op[0] == "sendfile" || op[0] == "sendmmsg" || op.has(3, "more"):
		return false
	case d.udpPeer == nil:
		autobind(d)
		return true // EDESTADDRREQ
	case d.shutWrite:
		return true // EPIPE
	}
	return datagramTo(t, d, d.udpPeer, d.udpAddr, op.num(2))
}

func recvDatagram(op Op, d *desc) bool {
	hasFlags := op[0] != "read" && op[0] != "readv"
	if !hasFlags && op.num(2) == 0 {
		return true // as with any file
	}
	if hasFlags && op.has(3, "errqueue") {
		return d.nonblock || op.has(3, "dontwait")
	}
	if len(d.datagrams) == 0 {
		return d.shutRead || d.nonblock || hasFlags && op.has(3, "dontwait")
	}
	if d.slow {
		return false
	}
	if !(hasFlags && op.has(3, "peek")) {
		d.datagrams = d.datagrams[1:]
	}
	return op[0] != "recvmmsg" || !op.has(3, "peek") // which would see the same one twice
}

// datagrams makes two that know each other, or moves one of theirs.
func (g *generator) datagrams() {
	family, bindTo, to := "4", g.pick("any4", "lo4"), "lo4"
	if g.IntN(3) == 0 {
		family, bindTo, to = "6", g.pick("any6", "lo6"), "lo6"
	}
	switch g.IntN(12) {
	case 10:
		g.anyOption(g.a(datagram), true)
	case 11:
		if g.IntN(3) == 0 {
			g.try("shutdown %d %s", g.a(datagram), g.pick("rd", "wr", "rdwr"))
		} else {
			g.try("disconnect %d", g.a(datagram))
		}
	case 0:
		a, b := g.free(), g.free()
		g.try("socket %d udp%s %s", a, family, g.some(0.3, "nonblock", "cloexec"))
		g.try("bind %d %s", a, bindTo)
		g.try("socket %d udp%s %s", b, family, g.some(0.3, "nonblock", "cloexec"))
		if g.IntN(2) == 0 {
			g.try("connect %d %d %s", b, a, to)
		}
		g.try("sendto %d %d %s %d", b, a, to, g.length())
	case 1:
		g.try("bind %d %s", g.a(datagram), g.pick("any4", "lo4", "any6", "lo6", "mapped"))
	case 2:
		g.try("connect %d %d %s", g.a(datagram), g.a(datagram), g.pick("lo4", "lo4", "lo6", "mapped"))
	case 3:
		g.try("setsockopt %d %s %d", g.a(datagram), g.pick("IP_PKTINFO", "IP_RECVTOS", "IP_RECVTTL", "IP_TOS",
			"IPV6_RECVPKTINFO", "IPV6_RECVTCLASS", "IPV6_RECVHOPLIMIT"), g.IntN(2))
	case 4:
		fd := g.a(datagram)
		switch g.IntN(5) {
		case 0:
			g.try("sockname %d", fd)
		case 1:
			g.try("peername %d", fd)
		case 2:
			g.try("fionread %d", fd)
		case 3:
			g.try("getsockopt %d %s", fd, g.pick("SO_ERROR", "SO_TYPE", "SO_PROTOCOL", "SO_ACCEPTCONN", "SO_RCVTIMEO", "TCP_NODELAY"))
		default:
			g.epollWith(fd)
		}
	case 5, 6, 7:
		g.try("sendto %d %d %s %d %s", g.a(datagram), g.a(datagram), g.pick("lo4", "lo4", "lo6", "mapped"), g.length(),
			g.some(0.2, "dontwait", "nosignal"))
	case 8:
		fd := g.a(datagram)
		g.try("%s %d %d", g.pick("send", "write", "writev", "sendmsg"), fd, g.length())
	default:
		fd, n := g.a(datagram), g.number(30000, g.length(), 0)
		flags := g.some(0.2, "dontwait", "waitall", "trunc", "peek")
		g.try("%s %d %d %s", g.pick("recv", "recvfrom", "recvmsg", "recvmmsg", "read", "readv"), fd, n, flags)
	}
}
