// SPDX-License-Identifier: Apache-2.0

package conformance

// difference is a line of a transcript in which an offloaded socket is known
// to answer otherwise than the kernel's, and why. An entry that no longer
// applies fails the suite.
type difference struct {
	topic, section  string
	kernel, offload string
	why             string
}

// refuses is an option that the kernel takes and the offload does not.
func refuses(section, call, why string) difference {
	return difference{"refused", section, call + " = 0", call + " = -1 ENOPROTOOPT", why}
}

// All of these are rows of docs/compat.md, too.
var known = []difference{
	{
		"oob", "urgent data",
		`send(c, "ab!", 3, MSG_OOB) = 3`, `send(c, "ab!", 3, MSG_OOB) = -1 EOPNOTSUPP`,
		"netstack has no urgent data; refusing is better than sending it as ordinary bytes",
	},
	{
		"oob", "urgent data",
		`recv(s, b, 1, MSG_OOB | MSG_DONTWAIT) = 1`, `recv(s, b, 1, MSG_OOB | MSG_DONTWAIT) = -1 EINVAL`,
		"the same, on the receiving side: none has come",
	},
	refuses("connections", "setsockopt(c, SO_DONTROUTE, 1)", "the routes are the DPU's"),
	refuses("connections", "setsockopt(c, SO_TIMESTAMP, 1)", "received segments have no time on the host"),
	refuses("connections", "setsockopt(c, SO_ZEROCOPY, 1)", "sending copies once, into the ring; there is no error queue for completions"),
	refuses("connections", "setsockopt(c, SO_MAX_PACING_RATE, 1 << 30)", "netstack does not pace"),
	refuses("connections", "setsockopt(c, TCP_NOTSENT_LOWAT, 16384)", "netstack does not tell what is sent from what waits; SO_SNDBUF bounds both"),
	refuses("connections", "setsockopt(c, TCP_WINDOW_CLAMP, 65536)", "netstack has no clamp; SO_RCVBUF bounds the window"),
	refuses("connections", "setsockopt(c, TCP_INQ, 1)", "no control messages on streams; FIONREAD says the same"),
	refuses("connections", "setsockopt(c, IP_RECVERR, 1)", "there is no error queue"),
	refuses("connections", "setsockopt(c, IPV6_RECVERR, 1)", "there is no error queue"),
	refuses("connections", "setsockopt(c, IP_MINTTL, 1)", "netstack does not look at it"),
	refuses("listeners", "setsockopt(l, TCP_FASTOPEN, 5)", "netstack does not do it; peers fall back by themselves"),
	refuses("listeners", "setsockopt(l, TCP_SAVE_SYN, 1)", "netstack does not keep the segment"),
	refuses("datagrams", "setsockopt(fd, SO_DONTROUTE, 1)", "the routes are the DPU's"),
	refuses("datagrams", "setsockopt(fd, SO_TIMESTAMP, 1)", "datagrams have no time on the host"),
	refuses("datagrams", "setsockopt(fd, SO_RXQ_OVFL, 1)", "drops are the DPU's, which counts them"),
	refuses("datagrams", "setsockopt(fd, IP_RECVERR, 1)", "there is no error queue"),
	refuses("datagrams", "setsockopt(fd, IP_RECVORIGDSTADDR, 1)", "IP_PKTINFO says the address"),
	{
		"udp", "names, IPv4",
		`  address: inet 127.0.0.1 0, 16 bytes`, `  address: inet 127.0.0.1 first, 16 bytes`, keepsPort,
	},
	{
		"udp", "names, IPv6",
		`  address: inet6 ::1 0, 28 bytes`, `  address: inet6 ::1 first, 28 bytes`, keepsPort,
	},
	{
		"threads", "closed while waiting",
		`finish(&jobs[0]) = 4`, `finish(&jobs[0]) = -1 EBADF`, closeWakes,
	},
	{
		"threads", "closed while waiting",
		`connect(c, SA(at), addr_len(&at)) = 0`, `connect(c, SA(at), addr_len(&at)) = -1 ECONNREFUSED`, closeWakes,
	},
	{
		"threads", "closed while waiting",
		`finish(&jobs[0]) = 0`, `finish(&jobs[0]) = -1 EBADF`, closeWakes,
	},
	{
		"threads", "replaced while waiting",
		`finish(&jobs[0]) = 6`, `finish(&jobs[0]) = -1 EBADF`, closeWakes,
	},
}

// closeWakes: the kernel's file lives on for as long as a call waits on it.
const closeWakes = "the last close ends a socket at once, and who waits on it in another thread with EBADF; " +
	"in the kernel that call goes on waiting, and the connection stays open behind the program's back"

// keepsPort: the kernel takes back a port that it chose itself.
const keepsPort = "connect to AF_UNSPEC leaves a datagram socket the port that it has, also if bind did not name it; " +
	"the next datagram would get another one from the kernel"
