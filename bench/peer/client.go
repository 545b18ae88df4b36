// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"bytes"
	"fmt"
	"strconv"
	"syscall"

	"pno/offload"
)

// client is a made-up connection: it sends a request, counts the bytes of the
// answer, and sends the next.
type client struct {
	handle   uint32
	sent     uint32 // stream offset of what went to the host
	taken    uint32 // stream offset of what came from it
	told     uint32 // as the host last heard
	head     []byte // of the first answer, until its length is known
	length   uint32 // of an answer; 0: not known yet
	answered uint32 // bytes of the answer under way
}

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
		q.connect(rec.Sock, p.conns)
	case offload.OpSend:
		if c := q.clients[rec.Sock]; c != nil {
			n, err := c.take(payload)
			if err != nil {
				return err
			}
			if n > 0 {
				p.answered.Add(1)
				q.due = append(q.due, c)
			} else if c.taken-c.told >= q.s.layout.TxWindow/4 {
				q.credit(c)
			}
		}
	case offload.OpClose:
		delete(q.clients, rec.Sock)
	case offload.OpConnect, offload.OpClaim:
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
func (q *queue) connect(listener uint32, n int) {
	local := q.s.bound[listener]
	for i := range n {
		peer := local
		peer.Port = uint16(10000 + i)
		b := q.qp.Emit(offload.OpAccept, 0, q.s.next, listener, 0, offload.AddrPairSize)
		if b == nil {
			return // the ring is full: fewer clients do
		}
		offload.AddrPair{Local: local, Peer: peer}.Put(b)
		c := &client{handle: q.s.next}
		q.s.next++
		q.clients[c.handle] = c
		q.due = append(q.due, c)
	}
}

// credit lets the host go on with a long answer.
func (q *queue) credit(c *client) {
	if q.qp.Emit(offload.OpTxAck, 0, c.handle, 0, c.taken, 0) != nil {
		c.told = c.taken
	}
}

// request sends a request for each client that has one to send, as far as the
// ring goes.
func (q *queue) request(text []byte) {
	for len(q.due) > 0 {
		c := q.due[0]
		b := q.qp.Emit(offload.OpData, 0, c.handle, c.sent, c.taken, len(text))
		if b == nil {
			return
		}
		copy(b, text)
		c.told = c.taken
		c.sent += uint32(len(text))
		q.due = q.due[1:]
	}
}

// take counts bytes of an answer, and returns how many answers they completed:
// 1 at most, since the next request goes out only then.
func (c *client) take(b []byte) (answers int, err error) {
	c.taken += uint32(len(b))
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
	end := bytes.Index(b, []byte("\r\n\r\n"))
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
