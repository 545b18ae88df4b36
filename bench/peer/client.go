// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"syscall"

	"pno/offload"
)

// conn is a made-up connection.
type conn struct {
	handle uint32
	sent   uint32 // stream offset of what went to the host
	taken  uint32 // stream offset of what came from it
	told   uint32 // as the host last heard
	says   []byte // when it is its turn
	reader
}

// reader tells from what comes when it is a connection's turn.
type reader interface {
	take(b []byte) (turns int, err error)
}

// client sends a request, counts the bytes of the answer, and sends the next.
type client struct {
	head     []byte // of the first answer, until its length is known
	length   uint32 // of an answer; 0: not known yet
	answered uint32 // bytes of the answer under way
}

// backend answers each request, which has no body.
type backend struct {
	matched int // bytes of endOfHead
}

const endOfHead = "\r\n\r\n"

// execute carries out one record of the host.
func (p *Peer) execute(q *queue, rec offload.Record, payload []byte) error {
	switch rec.Op {
	case offload.OpBind:
		req, err := offload.GetBindReq(payload)
		if err != nil {
			return fmt.Errorf("bind: %w", err)
		}
		q.s.bound[rec.Sock] = req.Local
		if b := q.qp.Emit(offload.OpReply, 0, rec.Sock, rec.Seq, 0, offload.AddrSize); b != nil {
			req.Local.Put(b)
		}
	case offload.OpListen:
		q.qp.Emit(offload.OpReply, 0, rec.Sock, rec.Seq, 0, 0)
	case offload.OpSubscribe:
		q.connect(rec.Sock, p.conns, p.request)
	case offload.OpSend:
		return p.take(q, rec.Sock, payload)
	case offload.OpClose:
		delete(q.conns, rec.Sock)
	case offload.OpConnect:
		return q.serve(rec.Sock, payload, p.answer)
	case offload.OpClaim:
		q.qp.Emit(offload.OpError, 0, rec.Sock, uint32(syscall.ECONNREFUSED), 0, 0)
	case offload.OpGetOpt, offload.OpFork:
		q.qp.Emit(offload.OpReply, 0, rec.Sock, rec.Seq, uint32(syscall.EOPNOTSUPP), 0)
	case offload.OpSetOpt, offload.OpUnsubscribe:
		if rec.Seq != 0 {
			q.qp.Emit(offload.OpReply, 0, rec.Sock, rec.Seq, 0, 0)
		}
	}
	return nil
}

// connect announces n clients of a listener.
func (q *queue) connect(listener uint32, n int, request []byte) {
	local := q.s.bound[listener]
	for i := range n {
		peer := local
		peer.Port = uint16(10000 + i)
		b := q.qp.Emit(offload.OpAccept, 0, q.s.next, listener, 0, offload.AddrPairSize)
		if b == nil {
			return // the ring is full: fewer clients do
		}
		offload.AddrPair{Local: local, Peer: peer}.Put(b)
		c := &conn{handle: q.s.next, says: request, reader: new(client)}
		q.s.next++
		q.conns[c.handle] = c
		q.due = append(q.due, c)
	}
}

// serve is the back end that the host connects to.
func (q *queue) serve(handle uint32, payload, answer []byte) error {
	if answer == nil {
		q.qp.Emit(offload.OpError, 0, handle, uint32(syscall.ECONNREFUSED), 0, 0)
		return nil
	}
	req, err := offload.GetConnectReq(payload)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	local := req.Peer
	local.Port = 1024 + uint16(handle)%60000
	b := q.qp.Emit(offload.OpConnected, 0, handle, 0, 0, offload.AddrPairSize)
	if b == nil {
		return errors.New("connect: the ring is full")
	}
	offload.AddrPair{Local: local, Peer: req.Peer}.Put(b)
	q.conns[handle] = &conn{handle: handle, says: answer, reader: new(backend)}
	return nil
}

// take reads what a connection is sent.
func (p *Peer) take(q *queue, handle uint32, payload []byte) error {
	c := q.conns[handle]
	if c == nil {
		return nil
	}
	n, err := c.take(payload)
	if err != nil {
		return err
	}
	c.taken += uint32(len(payload))
	switch _, isClient := c.reader.(*client); {
	case n > 0 && isClient:
		p.answered.Add(1)
		fallthrough
	case n > 0:
		q.due = append(q.due, c)
	case c.taken-c.told >= q.s.layout.TxWindow/4:
		q.credit(c)
	}
	return nil
}

// credit lets the host go on with a long answer.
func (q *queue) credit(c *conn) {
	if q.qp.Emit(offload.OpTxAck, 0, c.handle, 0, c.taken, 0) != nil {
		c.told = c.taken
	}
}

// speak lets those say something whose turn it is, as far as the ring goes.
func (q *queue) speak() {
	for len(q.due) > 0 {
		c := q.due[0]
		b := q.qp.Emit(offload.OpData, 0, c.handle, c.sent, c.taken, len(c.says))
		if b == nil {
			return
		}
		copy(b, c.says)
		c.told = c.taken
		c.sent += uint32(len(c.says))
		q.due = q.due[1:]
	}
}

// take counts the requests that a back end was sent: 1 at most, since the next
// one comes after its answer.
func (s *backend) take(b []byte) (requests int, err error) {
	for _, c := range b {
		if requests > 0 {
			return 0, errors.New("more than a request without body was sent to the back end")
		}
		switch {
		case c == endOfHead[s.matched]:
			s.matched++
		case c == endOfHead[0]:
			s.matched = 1
		default:
			s.matched = 0
		}
		if s.matched == len(endOfHead) {
			s.matched = 0
			requests++
		}
	}
	return requests, nil
}

// take counts bytes of an answer, and returns how many answers they completed:
// 1 at most, since the next request goes out only then.
func (c *client) take(b []byte) (answers int, err error) {
	c.answered += uint32(len(b))
	if c.length == 0 {
		c.head = append(c.head, b...)
		if c.length, err = answerLength(c.head); err != nil || c.length == 0 {
			return 0, err
		}
		c.head = nil
	}
	if c.answered < c.length {
		return 0, nil
	}
	if c.answered > c.length {
		return 0, fmt.Errorf("an answer of %d bytes where %d were announced", c.answered, c.length)
	}
	c.answered = 0
	return 1, nil
}

// answerLength is the size of an HTTP answer with its head, 0 while the head is
// not whole. Answers to the same request are equally long.
func answerLength(b []byte) (uint32, error) {
	end := bytes.Index(b, []byte(endOfHead))
	if end < 0 {
		return 0, nil
	}
	for line := range bytes.SplitSeq(b[:end], []byte("\r\n")) {
		name, value, _ := bytes.Cut(line, []byte(":"))
		if bytes.EqualFold(name, []byte("content-length")) {
			n, err := strconv.ParseUint(string(bytes.TrimSpace(value)), 10, 31)
			if err != nil {
				return 0, fmt.Errorf("length of an answer: %w", err)
			}
			return uint32(end) + 4 + uint32(n), nil
		}
	}
	return 0, fmt.Errorf("an answer without a length: %q", b[:end])
}
