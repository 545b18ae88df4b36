// SPDX-License-Identifier: Apache-2.0

package difffuzz

import "slices"

// Options: each may be asked for at any time, and set to a value that leaves the
// model right.
var (
	bothOptions = []string{"SO_ERROR", "SO_TYPE", "SO_DOMAIN", "SO_PROTOCOL", "SO_ACCEPTCONN", "SO_REUSEADDR", "SO_REUSEPORT",
		"SO_KEEPALIVE", "SO_OOBINLINE", "SO_BROADCAST", "SO_PRIORITY", "SO_LINGER", "SO_RCVTIMEO", "SO_SNDTIMEO", "IP_TOS", "IP_TTL",
		"IP_MTU_DISCOVER", "IP_PKTINFO", "IP_RECVTOS", "IP_RECVTTL",
		"IPV6_TCLASS", "IPV6_UNICAST_HOPS", "IPV6_MTU_DISCOVER", "IPV6_RECVPKTINFO", "IPV6_RECVTCLASS", "IPV6_RECVHOPLIMIT",
		"IPV6_V6ONLY"}
	streamOptions = []string{"SO_RCVLOWAT", "SO_SNDLOWAT", "SO_NO_CHECK", "SO_DEBUG", "SO_PASSCRED", "SO_BUSY_POLL",
		"SO_TXREHASH", "TCP_NODELAY", "TCP_CORK", "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT",
		"TCP_DEFER_ACCEPT", "TCP_SYNCNT", "TCP_LINGER2", "TCP_THIN_LINEAR_TIMEOUTS", "TCP_THIN_DUPACK", "TCP_FASTOPEN_NO_COOKIE",
		"IP_BIND_ADDRESS_NO_PORT", "IP_RECVOPTS", "IP_RETOPTS", "IP_MULTICAST_ALL", "IP_FREEBIND", "IPV6_DONTFRAG",
		"IPV6_AUTOFLOWLABEL", "IPV6_RECVPATHMTU"}
	datagramOptions = []string{"SO_NO_CHECK", "SO_DEBUG", "SO_PASSCRED", "SO_BUSY_POLL", "SO_TXREHASH", "IP_MULTICAST_ALL",
		"IPV6_AUTOFLOWLABEL", "IP_MULTICAST_TTL", "IP_MULTICAST_LOOP", "IPV6_MULTICAST_HOPS", "IPV6_MULTICAST_LOOP"}
	// refusedOptions can only be turned off: docs/compat.md.
	refusedOptions = []string{"SO_DONTROUTE", "SO_TIMESTAMP", "SO_MARK", "SO_ZEROCOPY", "IP_RECVERR", "IPV6_RECVERR"}
)

// doGetsockopt: the options of a connection do not go with it to a receiver, who
// is refused some of them: docs/compat.notes.md.
func doGetsockopt(t *turn, op Op) bool {
	d := t.at(op, 1)
	if d != nil && d.kind == connected && slices.Contains(datagramOptions, op.word(2)) {
		return false // who accepts has some of these from the first packet
	}
	return d == nil || d.kind != connected || !d.passed && !(d.reset && d.over)
}

func doSetsockopt(t *turn, op Op) bool {
	d := t.at(op, 1)
	if d == nil {
		return true
	}
	if d.kind == connected && d.passed {
		return false // as with getsockopt
	}
	if d.kind == listening && len(d.pending) > 0 {
		return false // those have, or have not, come under the option before: who takes them out decides
	}
	if len(d.datagrams) > 0 && (op.word(2) == "IP_PKTINFO" || op.word(2) == "IPV6_RECVPKTINFO") {
		return false // the kernel has not kept the interface of what had come before
	}
	if d.kind == datagram && slices.Contains(streamOptions, op.word(2)) && !slices.Contains(datagramOptions, op.word(2)) {
		return false // some of them are refused
	}
	v := op.num(3)
	switch op.word(2) {
	case "SO_LINGER":
		if d.shutWrite {
			return false // close resets, unless both ends have come, which nothing tells
		}
		d.linger0 = v == 0
	case "SO_RCVTIMEO":
		d.slow = v > 0
	case "SO_RCVLOWAT":
		return v == 0 || v == 1 // else poll does not tell that something has come
	case "SO_REUSEADDR", "SO_REUSEPORT":
		d.reuse = d.reuse || v != 0
	case "IPV6_V6ONLY":
		return d.kind != fresh && d.kind != datagram || d.bound // else who reaches whom is not modelled
	case "TCP_DEFER_ACCEPT":
		return v <= 0 || d.kind != listening && d.kind != fresh // else what connects does not arrive
	case "TCP_USER_TIMEOUT":
		return v <= 0 || v > 10000
	case "IP_BIND_ADDRESS_NO_PORT":
		return v == 0 || d.bound // else the port is the kernel's secret for a while
	}
	return v == 0 || !slices.Contains(refusedOptions, op.word(2)) || d.kind != fresh && d.kind != listening && d.kind != connected && d.kind != datagram
}

// doTCPInfo: the states between which acknowledgements decide are not asked for.
func doTCPInfo(t *turn, op Op) bool {
	d := t.at(op, 1)
	switch {
	case d == nil:
		return true
	case d.kind == connected:
		return !d.reset && !d.untold && !d.shutWrite && !d.shutRead
	case d.kind == fresh:
		return !d.reset && !d.untold
	}
	return true
}

// anyOption sets and asks for one.
func (g *generator) anyOption(fd int, udp bool) {
	names := slices.Concat(bothOptions, refusedOptions)
	if udp {
		names = slices.Concat(names, datagramOptions)
	} else {
		names = slices.Concat(names, streamOptions)
	}
	name := names[g.IntN(len(names))]
	if g.IntN(2) == 0 {
		g.try("setsockopt %d %s %d", fd, name, g.number(0, 1, 1, -1, 2, 7, 100, 300, 40000))
	}
	g.try("getsockopt %d %s", fd, name)
}
