// SPDX-License-Identifier: Apache-2.0

// Package netstack builds the TCP/IP stack of one shard out of gVisor's, with
// every knob that differs from its defaults written down, and adapts it to the
// DPU: a link endpoint that queues what the stack sends until the shard's loop
// moves it to the wire, Linux errno numbers, honest socket options, and the
// table of counters.
//
// A Stack belongs to one shard. gVisor's own goroutines (one TCP processor a
// stack, timers) call the link endpoint concurrently with the shard's loop;
// everything else here is called by the loop only.
package netstack

import (
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/loopback"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// TCP are the tunable properties of a stack. The zero value of a field means
// its default.
type TCP struct {
	Congestion  string        // "cubic" (default) or "reno"
	NoSACK      bool          // turn selective acknowledgements off
	RACK        bool          // detect loss by time as well; see DefaultRACK
	SendBuffer  int           // default per connection, bytes; grows to SendMax
	RecvBuffer  int           // the same for receiving
	SendMax     int           // largest send buffer
	RecvMax     int           // largest receive buffer, hence window
	TimeWait    time.Duration // how long a closed connection's addresses stay taken
	MinRTO      time.Duration // least retransmission timeout
	SynRetries  int           // SYNs sent again before a connect times out
	Retransmits int           // retransmissions before a connection is given up
}

// Defaults of TCP, exported for configuration files and documentation.
const (
	DefaultCongestion = "cubic"
	DefaultSendBuffer = 256 << 10
	DefaultRecvBuffer = 256 << 10
	DefaultSendMax    = 6 << 20
	DefaultRecvMax    = 4 << 20
	DefaultTimeWait   = 5 * time.Second
	DefaultMinRTO     = 200 * time.Millisecond
	DefaultSynRetries = 6

	// DefaultRACK is false: over a wire that loses nothing, RACK found up to
	// 127 losses in 470 MB (round trips far below the 1 ms of its clock, and
	// 64 KiB segments acknowledged in parts), each of which halves the
	// window; without it there were none. With 1 % loss, reordering and 20 ms
	// the two differ by less than the noise.
	DefaultRACK = false

	// Local ports of outgoing connections, the range that Linux uses.
	PortLow, PortHigh = 32768, 60999

	// LoopbackNIC is the NIC of 127.0.0.0/8 and ::1; ports of the DPU count
	// up from 1.
	LoopbackNIC = 1000
)

func (t TCP) withDefaults() TCP {
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	if t.Congestion == "" {
		t.Congestion = DefaultCongestion
	}
	def(&t.SendBuffer, DefaultSendBuffer)
	def(&t.RecvBuffer, DefaultRecvBuffer)
	def(&t.SendMax, DefaultSendMax)
	def(&t.RecvMax, DefaultRecvMax)
	def(&t.SynRetries, DefaultSynRetries)
	if t.TimeWait == 0 {
		t.TimeWait = DefaultTimeWait
	}
	if t.MinRTO == 0 {
		t.MinRTO = DefaultMinRTO
	}
	t.SendMax, t.RecvMax = max(t.SendMax, t.SendBuffer), max(t.RecvMax, t.RecvBuffer)
	return t
}

// Route sends a prefix through a gateway, or directly when it is invalid.
type Route struct {
	To      netip.Prefix
	Gateway netip.Addr
}

// Port is one network port of the stack.
type Port struct {
	Name      string
	Endpoint  *Endpoint
	Addresses []netip.Prefix
	Routes    []Route // besides those of the addresses' own prefixes
}

// Options describe a stack.
type Options struct {
	Ports    []Port
	Loopback bool
	TCP      TCP
}

// Stack is a shard's network stack.
type Stack struct {
	*stack.Stack
	clock   *clock
	options Options
	local   map[netip.Addr]bool
	flows   *flows
	buries  bool // see timewait.go
	queuer  queuer
	ports   []*Endpoint

	broadcast map[netip.Addr]bool // of the ports' networks
	foreign   foreign
	merged    tcpip.StatCounter // received segments that went along with the one before

	expired []*stack.PacketBuffer // Tick's scratch
	ended   []ended               // the same
}

// creating serialises New: it narrows GOMAXPROCS for a moment.
var creating sync.Mutex

// newStack builds the bare stack. gVisor starts as many TCP processor
// goroutines as GOMAXPROCS says; a shard wants exactly one, so that one
// hand-over a batch is enough and flows do not spread over the cores of other
// shards.
func newStack(c *clock, f *flows, handleLocal bool) *stack.Stack {
	creating.Lock()
	defer creating.Unlock()
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	return stack.New(stack.Options{
		Clock: c,
		NetworkProtocols: []stack.NetworkProtocolFactory{
			newOutlets(f),
			// Addresses are configured by hand, so detecting duplicates would
			// only delay the start by a second.
			ipv6.NewProtocolWithOptions(ipv6.Options{DADConfigs: stack.DADConfigurations{}}),
			arp.NewProtocol,
		},
		TransportProtocols: []stack.TransportProtocolFactory{
			tcp.NewProtocol, newRefuser, icmp.NewProtocol4, icmp.NewProtocol6,
		},
		// Connections to an own address are looped inside the stack.
		HandleLocal: handleLocal,
	})
}

// New builds a stack with its ports, addresses and routes.
func New(o Options) (*Stack, error) {
	c, f := newClock(), &flows{table: make(map[flowKey]*flow)}
	s := &Stack{
		Stack: newStack(c, f, true), clock: c, options: o, local: make(map[netip.Addr]bool), flows: f,
		broadcast: map[netip.Addr]bool{netip.AddrFrom4([4]byte{255, 255, 255, 255}): true},
	}
	s.queuer, _ = s.TransportProtocolInstance(tcp.ProtocolNumber).(queuer)
	tune := o.TCP.withDefaults()
	tune.TimeWait += timeWaitMark
	c.timeWait, c.ends, s.buries = tune.TimeWait, s.flows.inTimeWait, true
	if err := s.tune(tune); err != nil {
		s.Close()
		return nil, err
	}
	if o.Loopback {
		if err := s.addLoopback(); err != nil {
			s.Close()
			return nil, err
		}
	}
	for i, p := range o.Ports {
		if err := s.addPort(tcpip.NICID(i+1), p); err != nil {
			s.Close()
			return nil, err
		}
	}
	return s, nil
}

// tune sets every TCP option in which the DPU differs from gVisor's defaults.
func (s *Stack) tune(t TCP) error {
	sack := tcpip.TCPSACKEnabled(!t.NoSACK)
	var rack tcpip.TCPRecovery
	if t.RACK {
		rack = tcpip.TCPRACKLossDetection
	}
	cc := tcpip.CongestionControlOption(t.Congestion)
	snd := tcpip.TCPSendBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: t.SendBuffer, Max: t.SendMax}
	rcv := tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: t.RecvBuffer, Max: t.RecvMax}
	// The window follows what the application reads.
	moderate := tcpip.TCPModerateReceiveBufferOption(true)
	// What has no entry in timewait.go keeps some 8 KiB here, against Linux's 250
	// bytes: a minute of them at 10,000 a second would take 5 GB.
	tw := tcpip.TCPTimeWaitTimeoutOption(t.TimeWait)
	// A proxy uses up its ports otherwise; sequence numbers and timestamps
	// keep old segments out.
	reuse := tcpip.TCPTimeWaitReuseGlobal
	rto := tcpip.TCPMinRTOOption(t.MinRTO)
	syn := tcpip.TCPSynRetriesOption(t.SynRetries)
	options := []struct {
		what string
		opt  tcpip.SettableTransportProtocolOption
	}{
		{"selective acknowledgements", &sack}, {"loss detection", &rack}, {"congestion control", &cc},
		{"send buffer", &snd}, {"receive buffer", &rcv}, {"receive window", &moderate},
		{"time-wait", &tw}, {"time-wait reuse", &reuse}, {"least retransmission timeout", &rto}, {"SYN retries", &syn},
	}
	if t.Retransmits > 0 {
		n := tcpip.TCPMaxRetriesOption(t.Retransmits)
		options = append(options, struct {
			what string
			opt  tcpip.SettableTransportProtocolOption
		}{"retransmissions", &n})
	}
	for _, o := range options {
		if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, o.opt); err != nil {
			return fmt.Errorf("set TCP %s: %s", o.what, err)
		}
	}
	if err := s.SetPortRange(PortLow, PortHigh); err != nil {
		return fmt.Errorf("set local port range: %s", err)
	}
	return nil
}

func (s *Stack) addLoopback() error {
	if err := s.CreateNICWithOptions(LoopbackNIC, loopback.New(), stack.NICOptions{Name: "lo"}); err != nil {
		return fmt.Errorf("create loopback: %s", err)
	}
	// The whole of 127/8 answers, as on Linux.
	for _, p := range []string{"127.0.0.1/8", "::1/128"} {
		pfx := netip.MustParsePrefix(p)
		if err := s.addAddress(LoopbackNIC, pfx); err != nil {
			return err
		}
		s.AddRoute(tcpip.Route{Destination: Subnet(pfx.Masked()), NIC: LoopbackNIC})
	}
	return nil
}

func (s *Stack) addPort(id tcpip.NICID, p Port) error {
	if err := s.CreateNICWithOptions(id, p.Endpoint, stack.NICOptions{Name: p.Name, QDisc: p.Endpoint}); err != nil {
		return fmt.Errorf("create network port %s: %s", p.Name, err)
	}
	s.ports = append(s.ports, p.Endpoint)
	p.Endpoint.stack, p.Endpoint.flows, p.Endpoint.nic = s, s.flows, id
	stats := s.Stats()
	p.Endpoint.cuts = [2]*tcpip.StatCounter{stats.TCP.SegmentsSent, stats.IP.PacketsSent}
	s.flows.mss = max(s.flows.mss, p.Endpoint.mtu-ipv4Len-tcpLen)
	for _, a := range p.Addresses {
		if err := s.addAddress(id, a); err != nil {
			return err
		}
		p.Endpoint.addOwn(a.Addr())
	}
	s.addRoutes(id, p)
	return nil
}

func (s *Stack) addRoutes(id tcpip.NICID, p Port) {
	for _, a := range p.Addresses {
		s.AddRoute(tcpip.Route{Destination: Subnet(a.Masked()), NIC: id})
	}
	for _, r := range p.Routes {
		gw := tcpip.Address{}
		if r.Gateway.IsValid() {
			gw = Address(r.Gateway)
		}
		s.AddRoute(tcpip.Route{Destination: Subnet(r.To.Masked()), Gateway: gw, NIC: id})
	}
}

// Close ends the stack's goroutines.
func (s *Stack) Close() {
	if s.foreign.Stack != nil {
		s.foreign.Close()
	}
	s.Stack.Close()
}

func (s *Stack) addAddress(id tcpip.NICID, a netip.Prefix) error {
	proto := tcpip.NetworkProtocolNumber(header.IPv4ProtocolNumber)
	if a.Addr().Is6() {
		proto = header.IPv6ProtocolNumber
	}
	err := s.AddProtocolAddress(id, tcpip.ProtocolAddress{
		Protocol:          proto,
		AddressWithPrefix: tcpip.AddressWithPrefix{Address: Address(a.Addr()), PrefixLen: a.Bits()},
	}, stack.AddressProperties{})
	if err != nil {
		return fmt.Errorf("add address %s: %s", a, err)
	}
	s.local[a.Addr()] = true
	if sub := Subnet(a.Masked()); a.Addr().Is4() && a.Bits() < 31 {
		s.broadcast[Addr(sub.Broadcast())] = true
	}
	return nil
}

// IsLocal tells whether a connection to this address stays inside the stack.
func (s *Stack) IsLocal(a netip.Addr) bool {
	return a.IsLoopback() || s.local[a]
}

// Source returns the local address that the stack would use to reach peer.
func (s *Stack) Source(peer netip.Addr) (netip.Addr, tcpip.Error) {
	r, err := s.FindRoute(0, tcpip.Address{}, Address(peer), NetProto(peer), false)
	if err != nil {
		return netip.Addr{}, err
	}
	defer r.Release()
	return Addr(r.LocalAddress()), nil
}
