// SPDX-License-Identifier: Apache-2.0

package offload

// ABI version. A peer with another major version is refused at attach; a
// higher minor version only adds features, which are negotiated.
const (
	VersionMajor = 1
	VersionMinor = 1

	Magic = 0x314f4e50 // "PNO1", little endian
)

// Features, a bit each: what the DPU offers beyond version 1.0. The agent
// passes on to the process what the DPU told in its answer to hello.
const (
	FeatureUDP     = 1 << 0 // datagram sockets
	FeatureForeign = 1 << 1 // Welcome only: this process may use addresses that are not the DPU's
	FeatureSplice  = 1 << 2 // OpHold and OpMove: bytes from one socket to another without crossing to the host
)

// Geometry of the session memory. Sizes in bytes.
const (
	HeaderSize   = 4096 // SessionHeader, written by hostd only
	StatsOffset  = 4096 // array of uint64 counters, written by the shim only
	StatsSize    = 4096
	ChannelsOff  = 8192 // channel 0
	QPCtlSize    = 256  // control lines of one queue pair
	HostLineOff  = 0    // within a queue pair's control block
	DevLineOff   = 128  // two lines apart: adjacent-line prefetch shares pairs
	CacheLine    = 64
	RecordAlign  = 16
	RecordHdr    = 16
	MaxPayload   = 32768   // largest payload of one record
	MoveWindow   = 1 << 21 // what a connection may have on hold, and under way with Moves
	MaxChannels  = 64
	MaxShards    = 16
	MinRingSize  = 65536
	MaxRingSize  = 1 << 26
	MaxSessions  = 4096
	MaxHostSlots = 1 << 22
)

// Session status, SessionHeader.Status.
const (
	StatusUp      = 1
	StatusDPULost = 2 // the DPU is gone: every offloaded socket is reset
	StatusClosed  = 3
)

// Handles name a socket within one (session, shard). Bit 31 tells who chose
// it, bits 30..22 are a generation against stale records, bits 21..0 a slot.
const (
	HandleHost     = 1 << 31
	HandleGenShift = 22
	HandleGenMask  = 0x1ff
	HandleSlotMask = 1<<22 - 1
)

// Op is a record's operation.
type Op uint8

// Records from the host to the DPU. OpPad, in both directions, fills the ring
// to its end so that no record wraps.
const (
	OpPad         Op = 0
	OpBind        Op = 1  // host handle; Seq tag; payload BindReq; answered by OpReply
	OpListen      Op = 2  // Seq tag; Ack backlog; answered by OpReply
	OpConnect     Op = 3  // host handle, new or bound; payload ConnectReq; answered by OpConnected or OpError; UDP: Seq tag, OpReply
	OpSend        Op = 4  // Seq tx stream offset of payload[0]; Ack rx bytes consumed
	OpRxAck       Op = 5  // Ack rx bytes consumed
	OpShutdown    Op = 6  // Flags 0 read, 1 write, 2 both, 3 read, for the other holders to know; Seq tx stream offset of the end; Ack rx bytes consumed
	OpClose       Op = 7  // last record on a handle; Flags CloseReset; Seq tx stream offset of the end; Ack rx bytes consumed
	OpSetOpt      Op = 8  // payload OptVal; not answered
	OpGetOpt      Op = 9  // Seq tag; payload OptVal; answered by OpReply with OptVal
	OpSubscribe   Op = 10 // listener to be accepted on this channel; Ack most unaccepted at once
	OpUnsubscribe Op = 11 // Seq tag: reply only if non-zero
	OpAccepted    Op = 12 // the application took this connection
	OpAcceptBack  Op = 13 // the host returns an unaccepted connection to its listener
	OpClaim       Op = 14 // deliver this socket on this channel from now on; answered by OpClaimed
	OpFork        Op = 15 // Seq tag; payload ForkReq: grant every handle of this session to a child
	OpShared      Op = 16 // Seq tag; Ack rx bytes consumed; payload ForkReq: keep this connection under a token; answered by OpReply with a u32, the rx stream offset from which unread data is kept
	OpSendDgram   Op = 17 // Seq tx offset, Ack rx bytes consumed; payload Dgram and its data
	OpUnread      Op = 18 // Seq tag: reply only if non-zero; Ack rx stream offset of payload[0], unread bytes given back
	OpHeard       Op = 19 // the answer to OpStanding, before which no other follows
	OpHold        Op = 20 // Flags HoldOn or 0; Seq generation, of which 8 bits count; Ack rx bytes consumed: announce what is received (OpHeld) instead of sending it; or send it again
	OpMove        Op = 21 // Seq tx stream offset; Ack rx bytes consumed; payload MoveReq: bytes that another socket of this shard holds are sent on this one
)

// Records from the DPU to the host.
const (
	OpReply     Op = 64 // Seq tag, Ack errno (0 = ok); payload by request
	OpAccept    Op = 65 // Sock new handle; Seq listener handle; payload AddrPair
	OpData      Op = 66 // Seq rx stream offset of payload[0]; Ack tx bytes taken
	OpTxAck     Op = 67 // Ack tx bytes taken by the DPU's stack
	OpConnected Op = 68 // payload AddrPair
	OpFin       Op = 69 // Seq rx stream offset of the end; the peer sends no more
	OpError     Op = 70 // Seq errno: the socket is dead; of a datagram socket: SO_ERROR, it lives on
	OpClaimed   Op = 71 // Seq rx stream offset up to which data went to the former channel; Ack tx bytes taken
	OpRevoked   Op = 72 // another session claimed the socket
	OpDgram     Op = 73 // Seq rx offset, Ack tx bytes taken; payload Dgram and its data
	OpUnshared  Op = 74 // no other session holds the socket any more: consumption need not be reported at once
	OpHomeless  Op = 75 // who had claimed the socket has closed it: who waits for it claims it
	OpStanding  Op = 76 // to a holder of a shared connection: Seq rx offset received, Ack Standing…; answered by OpHeard
	OpHeld      Op = 77 // Flags generation of OpHold; Seq rx stream offset up to which the DPU holds the data; Ack tx bytes taken
)

// How a connection stands, OpStanding. The first two are for holders that are
// not at home, whose own view says nothing.
const (
	StandingReadable = 1 // nobody has read all that was received
	StandingEnded    = 2 // the peer sends no more
	StandingShutRead = 4 // a holder has shut it down for reading
	StandingShutSend = 8 // or for sending
)

// Record flags.
const (
	FlagCloseReset = 1 // OpClose: send RST (unread data, or SO_LINGER 0)
	FlagCloseAway  = 2 // OpClose: by a holder that was never at home; Seq and Ack do not count
	FlagShutNoted  = 3 // OpShutdown: for reading, by one of several holders; what comes can still be read
	FlagHoldOn     = 1 // OpHold
	FlagMore       = 1 // OpSend: more follows at once (MSG_MORE, TCP_CORK)
	FlagPart       = 1 // OpSendDgram, OpDgram: the datagram goes on in this socket's next record
)

// Protocols and bind flags.
const (
	ProtoTCP = 6
	ProtoUDP = 17

	BindReuseAddr   = 1
	BindReusePort   = 2
	BindV6Only      = 4
	BindTransparent = 8
	BindFree        = 16
)

// Datagrams. MaxDgram is the largest payload (IPv6; the stack refuses what is
// too long for IPv4), MaxSegments the most datagrams that one Dgram with
// Segment set is cut into.
const (
	MaxDgram    = 65527
	MaxSegments = 128

	DgramTOS = 1 // Dgram.Flags: TOS is set (always, from the DPU)
	DgramTTL = 2 // TTL is set
)

// How a producer ends a lap of its ring early, see lap.go. EarlyLap is the room
// that this leaves at least: for the longest datagram, and more.
const (
	EarlyLap = 128 << 10
	LapStep  = 16 << 10
)

// ErrnoRedirect in OpError or OpReply's errno: the flow's packets come to
// another shard; its number is in the low byte. The host repeats the request
// there.
const ErrnoRedirect = 0x10000

// Record is the 16-byte header of every ring entry. The next record starts at
// the following multiple of RecordAlign after the payload.
type Record struct {
	Op    Op
	Flags uint8
	Len   uint16 // payload bytes, at most MaxPayload
	Sock  uint32 // handle
	Seq   uint32
	Ack   uint32
}

// Addr is an IP endpoint. Family 0 = unspecified, 4 or 6; Port in host order.
type Addr struct {
	Family uint16
	Port   uint16
	Scope  uint32
	IP     [16]byte // IPv4 in the first four bytes
}

// AddrPair is the payload of OpAccept and OpConnected.
type AddrPair struct {
	Local, Peer Addr
}

// BindReq is the payload of OpBind. Its OpReply carries the bound Addr.
type BindReq struct {
	Local Addr
	Proto uint32
	Flags uint32
}

// ConnectReq is the payload of OpConnect. Local.Family 0 lets the DPU choose.
type ConnectReq struct {
	Local, Peer Addr
	Proto       uint32
	Flags       uint32
}

// DgramInfo is the payload of OpReply to OpBind and OpConnect for UDP.
type DgramInfo struct {
	Local, Peer Addr   // Peer.Family 0: not connected
	MTU         uint32 // of the way to Peer, or the least of all ports
	Reserved    uint32
}

// Dgram is what a datagram's data follows. To the DPU: where to (family 0: the
// peer connected to) and from which address (family 0: the DPU chooses). From
// it: who sent it, and to which address.
type Dgram struct {
	Len      uint32 // bytes of data
	Segment  uint16 // not 0: data is several datagrams of this size, the last may be shorter
	Flags    uint8
	TOS      uint8 // or traffic class
	Peer     Addr
	Local    Addr
	Index    uint32 // interface that it came by: 1 is the DPU's loopback, its ports follow
	TTL      uint8  // or hop limit
	Reserved [3]uint8
}

// OptVal is the payload of OpSetOpt and OpGetOpt: Linux level and name, and
// up to 240 bytes of value (TCP_INFO is 232).
type OptVal struct {
	Level, Name uint32
	Len         uint32
	Reserved    uint32
	Val         [240]byte
}

// ForkReq is the payload of OpFork.
type ForkReq struct {
	Token [16]byte // the child presents it to hostd
}

// MoveReq is the payload of OpMove: Len bytes of what the socket From holds,
// which start at the rx stream offset Off.
type MoveReq struct {
	From     uint32
	Off      uint32
	Len      uint32
	Reserved uint32
}

// SessionHeader is the first page of the session memory. hostd writes it, the
// shim only reads it; the DPU is told the layout over the control link and
// never reads it.
type SessionHeader struct {
	Magic         uint32
	VersionMajor  uint16
	VersionMinor  uint16
	TotalSize     uint64
	SessionID     uint64
	ChannelStride uint64
	H2DSize       uint32 // bytes of one host-to-DPU ring, a power of two
	D2HSize       uint32
	Channels      uint32
	Shards        uint32
	RxWindow      uint32 // bytes the DPU may send beyond what the host consumed, per socket
	TxWindow      uint32 // bytes the host may send beyond what the DPU took, per socket
	Features      uint64
	Status        uint32 // StatusUp …; read with acquire
	SpinNanos     uint32 // how long a thread polls before it sleeps
}

// HostLine is the host's control line of a queue pair. One writer: the host.
// Positions are byte counts since the start, never wrapped.
type HostLine struct {
	H2DProd   uint64 // end of the last record written
	D2HCons   uint64 // ring bytes given back
	D2HSeen   uint64 // records looked at, when Arm was set
	Arm       uint32 // odd: raise one interrupt for this value once d2h_prod != D2HSeen
	SpaceWant uint32 // with Arm odd: also when H2DCons moves
	H2DPad    uint64 // where the last padding of the H2D ring begins; 0: there was none
	Reserved  [3]uint64
}

// DevLine is the DPU's control line of a queue pair. One writer: the DPU.
type DevLine struct {
	D2HProd  uint64
	H2DCons  uint64
	DBArm    uint32 // odd: ring the doorbell once for this value after moving H2DProd
	Reserved [11]uint32
}
