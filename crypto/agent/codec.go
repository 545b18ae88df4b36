// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"pno/crypto/signing"
)

// ErrMessage is wrapped by every error about bytes that are not a message: it
// ends the connection that they came on.
var ErrMessage = errors.New("malformed agent message")

// Sizes of the fixed parts.
const (
	headerSize  = 24
	helloSize   = 96
	welcomeSize = 32
	refusedSize = 232
	opSize      = 72
	resultSize  = 32
)

func pad8(n int) int { return (n + 7) &^ 7 }

func appendHeader(b []byte, t Type, size int, id uint64) []byte {
	b = binary.LittleEndian.AppendUint32(b, Magic)
	b = binary.LittleEndian.AppendUint16(b, Version)
	b = binary.LittleEndian.AppendUint16(b, uint16(t))
	b = binary.LittleEndian.AppendUint32(b, uint32(size))
	b = binary.LittleEndian.AppendUint32(b, 0)
	return binary.LittleEndian.AppendUint64(b, id)
}

// AppendHello adds a HELLO to a packet. A name that is too long is cut.
func AppendHello(b []byte, pid uint32, name string) []byte {
	b = appendHeader(b, TypeHello, helloSize, 0)
	b = binary.LittleEndian.AppendUint32(b, pid)
	b = binary.LittleEndian.AppendUint32(b, 0)
	return appendText(b, name, NameLen)
}

// AppendWelcome adds a WELCOME to a packet.
func AppendWelcome(b []byte, id uint64, inflight, timeoutMicros uint32) []byte {
	b = appendHeader(b, TypeWelcome, welcomeSize, id)
	b = binary.LittleEndian.AppendUint32(b, inflight)
	return binary.LittleEndian.AppendUint32(b, timeoutMicros)
}

// AppendRefused adds a REFUSED to a packet.
func AppendRefused(b []byte, id uint64, errno int32, text string) []byte {
	b = appendHeader(b, TypeRefused, refusedSize, id)
	b = binary.LittleEndian.AppendUint32(b, uint32(errno))
	b = binary.LittleEndian.AppendUint32(b, 0)
	return appendText(b, text, TextLen)
}

// appendText leaves at least one NUL.
func appendText(b []byte, s string, size int) []byte {
	s = s[:min(len(s), size-1)]
	b = append(b, s...)
	return append(b, make([]byte, size-len(s))...)
}

// AppendOp adds an operation to a packet.
func AppendOp(b []byte, id uint64, r *signing.Request, timeoutMicros uint32) []byte {
	size := opSize + pad8(len(r.Data))
	b = appendHeader(b, TypeOp, size, id)
	b = append(b, r.Key[:]...)
	b = binary.LittleEndian.AppendUint32(b, timeoutMicros)
	b = binary.LittleEndian.AppendUint16(b, uint16(r.Scheme))
	b = binary.LittleEndian.AppendUint16(b, uint16(r.Input))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(r.Data)))
	b = binary.LittleEndian.AppendUint32(b, 0)
	return appendPadded(b, r.Data)
}

// AppendResult adds a result to a packet.
func AppendResult(b []byte, id uint64, status signing.Status, micros uint32, data []byte) []byte {
	b = appendHeader(b, TypeResult, ResultSize(data), id)
	b = binary.LittleEndian.AppendUint16(b, uint16(status))
	b = binary.LittleEndian.AppendUint16(b, uint16(len(data)))
	b = binary.LittleEndian.AppendUint32(b, micros)
	return appendPadded(b, data)
}

// ResultSize is what AppendResult adds.
func ResultSize(data []byte) int { return resultSize + pad8(len(data)) }

func appendPadded(b, data []byte) []byte {
	b = append(b, data...)
	for range pad8(len(data)) - len(data) {
		b = append(b, 0)
	}
	return b
}

// Next takes the first message off a packet. The message is a *Hello,
// *Welcome, *Refused, *Op or *Result.
func Next(packet []byte) (msg any, rest []byte, err error) {
	if len(packet) < headerSize {
		return nil, nil, fmt.Errorf("%d bytes, shorter than a header: %w", len(packet), ErrMessage)
	}
	h := decodeHeader(packet)
	switch {
	case h.Magic != Magic:
		return nil, nil, fmt.Errorf("magic %#x: %w", h.Magic, ErrMessage)
	case h.Version != Version:
		return nil, nil, fmt.Errorf("agent protocol version %d, this side speaks %d: %w", h.Version, Version, ErrMessage)
	case h.Size < headerSize || h.Size%8 != 0 || int64(h.Size) > int64(len(packet)):
		return nil, nil, fmt.Errorf("type %d says %d bytes, %d are left of its packet: %w", h.Type, h.Size, len(packet), ErrMessage)
	case h.Reserved != 0:
		return nil, nil, fmt.Errorf("type %d with a reserved field of %#x: %w", h.Type, h.Reserved, ErrMessage)
	}
	body, rest := packet[:h.Size:h.Size], packet[h.Size:]
	msg, err = decodeBody(h, body)
	if err != nil {
		return nil, nil, fmt.Errorf("type %d of %d bytes: %w: %w", h.Type, h.Size, err, ErrMessage)
	}
	return msg, rest, nil
}

func decodeHeader(b []byte) Header {
	le := binary.LittleEndian
	return Header{Magic: le.Uint32(b), Version: le.Uint16(b[4:]), Type: Type(le.Uint16(b[6:])),
		Size: le.Uint32(b[8:]), Reserved: le.Uint32(b[12:]), ID: le.Uint64(b[16:])}
}

var errSize = errors.New("wrong size")

func decodeBody(h Header, b []byte) (any, error) {
	le := binary.LittleEndian
	fixed := map[Type]int{TypeHello: helloSize, TypeWelcome: welcomeSize, TypeRefused: refusedSize}
	switch h.Type {
	case TypeHello, TypeWelcome, TypeRefused:
		if len(b) != fixed[h.Type] {
			return nil, errSize
		}
	}
	switch h.Type {
	case TypeHello:
		m := &Hello{Header: h, PID: le.Uint32(b[24:]), Flags: le.Uint32(b[28:])}
		copy(m.Name[:], b[32:])
		if m.Flags != 0 {
			return nil, fmt.Errorf("unknown flags %#x", m.Flags)
		}
		return m, nil
	case TypeWelcome:
		return &Welcome{Header: h, MaxInflight: le.Uint32(b[24:]), MaxTimeoutMicros: le.Uint32(b[28:])}, nil
	case TypeRefused:
		m := &Refused{Header: h, Err: int32(le.Uint32(b[24:]))}
		copy(m.Text[:], b[32:])
		return m, nil
	case TypeOp:
		return decodeOp(h, b)
	case TypeResult:
		return decodeResult(h, b)
	}
	return nil, errors.New("unknown type")
}

func decodeOp(h Header, b []byte) (*Op, error) {
	le := binary.LittleEndian
	if len(b) < opSize {
		return nil, errSize
	}
	m := &Op{OpHead: OpHead{Header: h, TimeoutMicros: le.Uint32(b[56:]), Scheme: le.Uint16(b[60:]),
		Input: le.Uint16(b[62:]), Len: le.Uint32(b[64:]), Reserved: le.Uint32(b[68:])}}
	copy(m.Key[:], b[24:])
	if m.Len == 0 || m.Len > signing.MaxInput {
		return nil, fmt.Errorf("%d bytes of data, want 1 to %d", m.Len, signing.MaxInput)
	}
	if len(b) != opSize+pad8(int(m.Len)) {
		return nil, errSize
	}
	if m.Input > math.MaxUint8 { // signing.Input has eight bits
		return nil, fmt.Errorf("unknown input %d", m.Input)
	}
	m.Data = b[opSize : opSize+int(m.Len)]
	return m, checkPadding(b[opSize+int(m.Len):], m.Reserved)
}

func decodeResult(h Header, b []byte) (*Result, error) {
	le := binary.LittleEndian
	if len(b) < resultSize {
		return nil, errSize
	}
	m := &Result{ResultHead: ResultHead{Header: h, Status: le.Uint16(b[24:]), Len: le.Uint16(b[26:]), Micros: le.Uint32(b[28:])}}
	if m.Len > signing.MaxOutput {
		return nil, fmt.Errorf("%d bytes of data, want at most %d", m.Len, signing.MaxOutput)
	}
	if len(b) != resultSize+pad8(int(m.Len)) {
		return nil, errSize
	}
	m.Data = b[resultSize : resultSize+int(m.Len)]
	return m, checkPadding(b[resultSize+int(m.Len):], 0)
}

func checkPadding(pad []byte, reserved uint32) error {
	for _, c := range pad {
		reserved |= uint32(c)
	}
	if reserved != 0 {
		return errors.New("padding that is not zero")
	}
	return nil
}

// text is a NUL-padded field.
func text(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}
