// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"encoding/binary"
	"errors"
	"reflect"
	"testing"
)

func TestRoundTrip(t *testing.T) {
	reg := &RegisterSocket{Cookie: 7}
	reg.Kind, reg.Shard, reg.Handle[3] = SockListener, 2, 0x80000001
	sock := &Socket{Cookie: 7, SocketInfo: reg.SocketInfo}
	hello := &Hello{ABIMajor: 1, Flags: HelloToken}
	SetText(hello.Name[:], "nginx")
	for _, m := range []Message{hello, &Welcome{Session: 1 << 62, NRules: 3}, &Refused{Err: 100}, &ChannelOpen{Channel: 1},
		&Channel{Channel: 2}, &Forked{PID: 9}, reg, &UnregisterSocket{Cookie: 1}, &LookupSocket{Cookie: 2}, sock, &Ready{}, &Ack{Err: 2}} {
		b := Encode(m, 42)
		if len(b) > MaxMessage {
			t.Errorf("%T is %d bytes, MaxMessage is %d", m, len(b), MaxMessage)
		}
		got, err := Decode(b)
		if err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%T: %+v, %v", m, got, err)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	good := func(change func(b []byte)) []byte {
		b := Encode(&RegisterSocket{Cookie: 1, SocketInfo: SocketInfo{Kind: SockConn}}, 1)
		change(b)
		return b
	}
	put32 := func(off int, v uint32) func([]byte) {
		return func(b []byte) { binary.LittleEndian.PutUint32(b[off:], v) }
	}
	tests := []struct {
		name string
		in   []byte
	}{
		{"empty", nil},
		{"short", make([]byte, 15)},
		{"magic", good(put32(0, 1))},
		{"version", good(func(b []byte) { b[4] = 9 })},
		{"type", good(func(b []byte) { b[6] = 99 })},
		{"size field", good(put32(8, 151))},
		{"cut", good(func([]byte) {})[:151]},
		{"trailing", append(good(func([]byte) {}), 0)},
		{"cookie 0", good(func(b []byte) { clear(b[16:24]) })},
		{"kind", good(put32(24, 4))},
		{"shard", good(put32(32, 16))},
		{"family", good(put32(40, 5))},
		{"channel 0", Encode(&ChannelOpen{}, 1)},
		{"channel 64", Encode(&ChannelOpen{Channel: 64}, 1)},
		{"hello flags", Encode(&Hello{Flags: 4}, 1)},
		{"hello token and session", Encode(&Hello{Flags: HelloToken, Session: 1}, 1)},
		{"rules", Encode(&Welcome{NRules: MaxRules + 1}, 1)},
		{"negative pid", Encode(&Forked{PID: -1}, 1)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if m, err := Decode(tt.in); !errors.Is(err, ErrMessage) {
				t.Errorf("got %+v, %v", m, err)
			}
		})
	}
}

func TestText(t *testing.T) {
	var f [8]byte
	SetText(f[:], "a-long-name")
	if got := Text(f[:]); got != "a-long-" {
		t.Errorf("got %q", got)
	}
	if got := Text([]byte("a\x1b[2J\xff\x00zz")); got != "a?[2J?" {
		t.Errorf("got %q", got)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(Encode(&Hello{}, 1))
	f.Add(Encode(&RegisterSocket{Cookie: 1, SocketInfo: SocketInfo{Kind: SockConn}}, 1))
	f.Add(Encode(&Forked{PID: 1}, 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Decode(b)
		if err != nil {
			if !errors.Is(err, ErrMessage) {
				t.Errorf("error without ErrMessage: %v", err)
			}
			return
		}
		if got := Encode(m, m.header().ID); !reflect.DeepEqual(got, b) {
			t.Errorf("decoded and encoded again: %x, was %x", got, b)
		}
	})
}
