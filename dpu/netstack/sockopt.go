// SPDX-License-Identifier: Apache-2.0

package netstack

import (
	"encoding/binary"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// Linux's numbers of the options that package syscall does not name.
const (
	tcpUserTimeout  = 18
	tcpQuickAck     = 12
	tcpCongestion   = 13
	tcpInfoSize     = 232
	ipv6TClass      = 67
	ipv6UnicastHops = 16
	ipMTU           = 14
	ipv6MTU         = 24

	loopbackMTU = 65536
)

// option is a socket option that the stack honours.
type option struct {
	set func(ep tcpip.Endpoint, v int) tcpip.Error
	get func(ep tcpip.Endpoint) (int, tcpip.Error)
}

// key is a Linux level and name.
type key struct{ level, name uint32 }

func flag(set func(*tcpip.SocketOptions, bool), get func(*tcpip.SocketOptions) bool) option {
	return option{
		func(ep tcpip.Endpoint, v int) tcpip.Error { set(ep.SocketOptions(), v != 0); return nil },
		func(ep tcpip.Endpoint) (int, tcpip.Error) {
			if get(ep.SocketOptions()) {
				return 1, nil
			}
			return 0, nil
		},
	}
}

func number(o tcpip.SockOptInt) option {
	return option{
		func(ep tcpip.Endpoint, v int) tcpip.Error { return ep.SetSockOptInt(o, v) },
		func(ep tcpip.Endpoint) (int, tcpip.Error) { return ep.GetSockOptInt(o) },
	}
}

// ranged refuses values that Linux refuses and gVisor takes.
func ranged(o option, lo, hi int) option {
	set := o.set
	o.set = func(ep tcpip.Endpoint, v int) tcpip.Error {
		if v < lo || v > hi {
			return &tcpip.ErrInvalidOptionValue{}
		}
		return set(ep, v)
	}
	return o
}

// options are those that do what their name says. What is missing here is
// refused: gVisor accepts several more and ignores them (TCP_FASTOPEN,
// TCP_SAVE_SYN, TCP_NOTSENT_LOWAT, IP_TRANSPARENT, IP_FREEBIND, …).
var options = map[key]option{
	{syscall.SOL_SOCKET, syscall.SO_KEEPALIVE}:  flag((*tcpip.SocketOptions).SetKeepAlive, (*tcpip.SocketOptions).GetKeepAlive),
	{syscall.SOL_SOCKET, syscall.SO_REUSEADDR}:  flag((*tcpip.SocketOptions).SetReuseAddress, (*tcpip.SocketOptions).GetReuseAddress),
	{syscall.SOL_SOCKET, 15 /* SO_REUSEPORT */}: flag((*tcpip.SocketOptions).SetReusePort, (*tcpip.SocketOptions).GetReusePort),
	// Half of what Linux would allow: the other half waits on the host, where
	// the windows are limited by the same value.
	{syscall.SOL_SOCKET, syscall.SO_SNDBUF}: {
		func(ep tcpip.Endpoint, v int) tcpip.Error {
			lo, hi := ep.SocketOptions().SendBufferLimits()
			ep.SocketOptions().SetSendBufferSize(min(max(int64(v), lo), hi), true)
			return nil
		},
		func(ep tcpip.Endpoint) (int, tcpip.Error) { return int(ep.SocketOptions().GetSendBufferSize()), nil },
	},
	{syscall.SOL_SOCKET, syscall.SO_RCVBUF}: {
		func(ep tcpip.Endpoint, v int) tcpip.Error {
			lo, hi := ep.SocketOptions().ReceiveBufferLimits()
			ep.SocketOptions().SetReceiveBufferSize(min(max(int64(v), lo), hi), true)
			return nil
		},
		func(ep tcpip.Endpoint) (int, tcpip.Error) { return int(ep.SocketOptions().GetReceiveBufferSize()), nil },
	},
	{syscall.IPPROTO_TCP, syscall.TCP_NODELAY}: {
		func(ep tcpip.Endpoint, v int) tcpip.Error { ep.SocketOptions().SetDelayOption(v == 0); return nil },
		func(ep tcpip.Endpoint) (int, tcpip.Error) {
			if ep.SocketOptions().GetDelayOption() {
				return 0, nil
			}
			return 1, nil
		},
	},
	{syscall.IPPROTO_TCP, syscall.TCP_CORK}:         flag((*tcpip.SocketOptions).SetCorkOption, (*tcpip.SocketOptions).GetCorkOption),
	{syscall.IPPROTO_TCP, tcpQuickAck}:              flag((*tcpip.SocketOptions).SetQuickAck, (*tcpip.SocketOptions).GetQuickAck),
	{syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE}:     keepIdle,
	{syscall.IPPROTO_TCP, syscall.TCP_KEEPINTVL}:    keepInterval,
	{syscall.IPPROTO_TCP, syscall.TCP_KEEPCNT}:      ranged(number(tcpip.KeepaliveCountOption), 1, 127),
	{syscall.IPPROTO_TCP, syscall.TCP_SYNCNT}:       ranged(number(tcpip.TCPSynCountOption), 1, 127),
	{syscall.IPPROTO_TCP, syscall.TCP_MAXSEG}:       maxSeg,
	{syscall.IPPROTO_TCP, tcpUserTimeout}:           userTimeout,
	{syscall.IPPROTO_TCP, syscall.TCP_LINGER2}:      linger2,
	{syscall.IPPROTO_TCP, syscall.TCP_DEFER_ACCEPT}: deferAccept,
	{syscall.IPPROTO_IP, syscall.IP_TOS}:            ranged(number(tcpip.IPv4TOSOption), 0, 255),
	{syscall.IPPROTO_IP, syscall.IP_TTL}:            ranged(number(tcpip.IPv4TTLOption), 1, 255),
	{syscall.IPPROTO_IPV6, ipv6TClass}:              ranged(number(tcpip.IPv6TrafficClassOption), 0, 255),
	{syscall.IPPROTO_IPV6, ipv6UnicastHops}:         ranged(number(tcpip.IPv6HopLimitOption), 1, 255),
}

// maxSeg takes 0 for no limit, as Linux does; the stack says so by more than
// any segment has.
var maxSeg = option{
	func(ep tcpip.Endpoint, v int) tcpip.Error {
		if v == 0 {
			v = header.TCPMaximumMSS
		}
		return ep.SetSockOptInt(tcpip.MaxSegOption, v)
	},
	func(ep tcpip.Endpoint) (int, tcpip.Error) { return ep.GetSockOptInt(tcpip.MaxSegOption) },
}

var keepIdle = ranged(option{
	func(ep tcpip.Endpoint, v int) tcpip.Error {
		o := tcpip.KeepaliveIdleOption(time.Duration(v) * time.Second)
		return ep.SetSockOpt(&o)
	},
	func(ep tcpip.Endpoint) (int, tcpip.Error) {
		var o tcpip.KeepaliveIdleOption
		err := ep.GetSockOpt(&o)
		return int(time.Duration(o) / time.Second), err
	},
}, 1, 32767)

var keepInterval = ranged(option{
	func(ep tcpip.Endpoint, v int) tcpip.Error {
		o := tcpip.KeepaliveIntervalOption(time.Duration(v) * time.Second)
		return ep.SetSockOpt(&o)
	},
	func(ep tcpip.Endpoint) (int, tcpip.Error) {
		var o tcpip.KeepaliveIntervalOption
		err := ep.GetSockOpt(&o)
		return int(time.Duration(o) / time.Second), err
	},
}, 1, 32767)

var userTimeout = ranged(option{
	func(ep tcpip.Endpoint, v int) tcpip.Error {
		o := tcpip.TCPUserTimeoutOption(time.Duration(v) * time.Millisecond)
		return ep.SetSockOpt(&o)
	},
	func(ep tcpip.Endpoint) (int, tcpip.Error) {
		var o tcpip.TCPUserTimeoutOption
		err := ep.GetSockOpt(&o)
		return int(time.Duration(o) / time.Millisecond), err
	},
}, 0, 1<<31-1)

var linger2 = option{
	func(ep tcpip.Endpoint, v int) tcpip.Error {
		o := tcpip.TCPLingerTimeoutOption(time.Duration(v) * time.Second)
		return ep.SetSockOpt(&o)
	},
	func(ep tcpip.Endpoint) (int, tcpip.Error) {
		var o tcpip.TCPLingerTimeoutOption
		err := ep.GetSockOpt(&o)
		return int(time.Duration(o) / time.Second), err
	},
}

var deferAccept = ranged(option{
	func(ep tcpip.Endpoint, v int) tcpip.Error {
		o := tcpip.TCPDeferAcceptOption(time.Duration(v) * time.Second)
		return ep.SetSockOpt(&o)
	},
	func(ep tcpip.Endpoint) (int, tcpip.Error) {
		var o tcpip.TCPDeferAcceptOption
		err := ep.GetSockOpt(&o)
		return int(time.Duration(o) / time.Second), err
	},
}, 0, 1<<20)

// SetOption sets a Linux socket option. An option that the stack would not
// honour is refused with ENOPROTOOPT, as a kernel without it does.
func SetOption(ep tcpip.Endpoint, v6 bool, level, name uint32, val []byte) syscall.Errno {
	if level == syscall.IPPROTO_TCP && name == tcpCongestion {
		o := tcpip.CongestionControlOption(cString(val))
		return Errno(ep.SetSockOpt(&o))
	}
	if level == syscall.SOL_SOCKET && name == syscall.SO_LINGER {
		if len(val) < 8 {
			return syscall.EINVAL
		}
		ep.SocketOptions().SetLinger(tcpip.LingerOption{
			Enabled: binary.LittleEndian.Uint32(val) != 0,
			Timeout: time.Duration(int32(binary.LittleEndian.Uint32(val[4:]))) * time.Second,
		})
		return 0
	}
	o, ok := options[key{level, name}]
	if !ok || level == syscall.IPPROTO_IPV6 && !v6 {
		return syscall.ENOPROTOOPT
	}
	if len(val) < 4 {
		return syscall.EINVAL
	}
	return Errno(o.set(ep, int(int32(binary.LittleEndian.Uint32(val)))))
}

// mtu is that of the port which an endpoint's connection leaves by.
func (s *Stack) mtu(ep tcpip.Endpoint) int {
	if i, ok := ep.Info().(*stack.TransportEndpointInfo); ok && i.RegisterNICID >= 1 && int(i.RegisterNICID) <= len(s.ports) {
		return int(s.ports[i.RegisterNICID-1].mtu)
	}
	return loopbackMTU
}

// maxSegment is the most data of a segment: what fits the MTU beside the
// headers and the timestamps, or what was asked for, if that is less.
func (s *Stack) maxSegment(ep tcpip.Endpoint, v6 bool) int {
	headers := ipv4Len + tcpLen + 12
	if i, ok := ep.Info().(*stack.TransportEndpointInfo); ok && i.NetProto == header.IPv6ProtocolNumber || !ok && v6 {
		headers += header.IPv6MinimumSize - ipv4Len
	}
	return s.mtu(ep) - headers
}

// GetOption reads a Linux socket option into val and returns its length.
func (s *Stack) GetOption(ep tcpip.Endpoint, v6 bool, level, name uint32, val []byte) (int, syscall.Errno) {
	if level == syscall.IPPROTO_TCP {
		switch name {
		case syscall.TCP_INFO:
			return tcpInfo(ep, s.maxSegment(ep, v6), val)
		case syscall.TCP_MAXSEG:
			binary.LittleEndian.PutUint32(val, uint32(s.maxSegment(ep, v6)))
			return 4, 0
		case tcpCongestion:
			var o tcpip.CongestionControlOption
			if err := ep.GetSockOpt(&o); err != nil {
				return 0, Errno(err)
			}
			clear(val[:16])
			copy(val[:15], o)
			return 16, 0
		}
	}
	if level == syscall.IPPROTO_IP && name == ipMTU || level == syscall.IPPROTO_IPV6 && name == ipv6MTU {
		binary.LittleEndian.PutUint32(val, uint32(s.mtu(ep)))
		return 4, 0
	}
	o, ok := options[key{level, name}]
	if !ok || level == syscall.IPPROTO_IPV6 && !v6 {
		return 0, syscall.ENOPROTOOPT
	}
	v, err := o.get(ep)
	if err != nil {
		return 0, Errno(err)
	}
	binary.LittleEndian.PutUint32(val, uint32(v))
	return 4, 0
}

func cString(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

// tcpInfo fills Linux's struct tcp_info as far as the stack knows; the rest
// is zero.
func tcpInfo(ep tcpip.Endpoint, maxSegment int, val []byte) (int, syscall.Errno) {
	var o tcpip.TCPInfoOption
	if err := ep.GetSockOpt(&o); err != nil {
		return 0, Errno(err)
	}
	b := val[:tcpInfoSize]
	clear(b)
	le := binary.LittleEndian
	us := func(d time.Duration) uint32 { return uint32(min(d/time.Microsecond, 1<<32-1)) }
	b[0] = LinuxState(tcp.EndpointState(o.State))
	b[1] = uint8(o.CcState)
	mss := uint32(maxSegment)
	le.PutUint32(b[8:], us(o.RTO))
	le.PutUint32(b[16:], mss) // snd_mss
	le.PutUint32(b[20:], mss) // rcv_mss
	le.PutUint32(b[68:], us(o.RTT))
	le.PutUint32(b[72:], us(o.RTTVar))
	le.PutUint32(b[76:], o.SndSsthresh)
	le.PutUint32(b[80:], o.SndCwnd)
	le.PutUint32(b[84:], mss) // advmss
	if o.ReorderSeen {
		le.PutUint32(b[88:], 3+1) // more than the default reordering
	} else {
		le.PutUint32(b[88:], 3)
	}
	if st, ok := ep.Stats().(*tcp.Stats); ok {
		le.PutUint32(b[100:], uint32(st.SendErrors.Retransmits.Value()))
	}
	return tcpInfoSize, 0
}

// LinuxState is the number of a TCP state in Linux's tcp_states.h.
func LinuxState(s tcp.EndpointState) uint8 {
	switch s {
	case tcp.StateEstablished:
		return 1
	case tcp.StateSynSent, tcp.StateConnecting:
		return 2
	case tcp.StateSynRecv:
		return 3
	case tcp.StateFinWait1:
		return 4
	case tcp.StateFinWait2:
		return 5
	case tcp.StateTimeWait:
		return 6
	case tcp.StateCloseWait:
		return 8
	case tcp.StateLastAck:
		return 9
	case tcp.StateListen:
		return 10
	case tcp.StateClosing:
		return 11
	}
	return 7
}

// StateName is the state as ss prints it.
func StateName(s tcp.EndpointState) string {
	return [...]string{
		"", "ESTAB", "SYN-SENT", "SYN-RECV", "FIN-WAIT-1", "FIN-WAIT-2", "TIME-WAIT", "UNCONN",
		"CLOSE-WAIT", "LAST-ACK", "LISTEN", "CLOSING",
	}[LinuxState(s)]
}
