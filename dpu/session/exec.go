// SPDX-License-Identifier: Apache-2.0

package session

import (
	"fmt"

	"pno/offload"
)

// execute carries out one record of the host. It reports false if the record
// cannot be executed yet.
func (t *Table) execute(q *queue, rec offload.Record, payload []byte) bool {
	ok, bad := t.dispatch(q, rec, payload)
	if bad != "" {
		t.fail(q.s, fmt.Errorf("%s (op %d, handle %#x, channel %d, shard %d): %w",
			bad, rec.Op, rec.Sock, q.channel, t.Shard, offload.ErrProtocol))
		return true
	}
	return ok
}

// dispatch returns what is wrong with the record, if anything.
func (t *Table) dispatch(q *queue, rec offload.Record, payload []byte) (ok bool, bad string) {
	switch rec.Op {
	case offload.OpBind:
		if !t.closesPassed(q) {
			return false, ""
		}
		return true, t.bind(q, rec, payload)
	case offload.OpConnect:
		return true, t.connect(q, rec, payload)
	case offload.OpFork:
		return true, t.fork(q, rec, payload)
	}
	if rec.Op < offload.OpBind || rec.Op > offload.OpMove {
		return true, "unknown operation"
	}
	h := q.s.handles.get(rec.Sock)
	if h == nil {
		return true, t.unknown(q, rec)
	}
	if h.sock.keep != nil && mayBeAhead(rec.Op) && h.sock.ahead(rec.Ack) {
		return false, ""
	}
	switch rec.Op {
	case offload.OpSend:
		return t.send(h, rec, payload)
	case offload.OpRxAck:
		if !t.consume(h.sock, rec.Ack) {
			return true, "consumed more than was sent"
		}
		t.service(h.sock)
	case offload.OpSendDgram:
		return t.sendDgram(h, rec, payload)
	case offload.OpShutdown:
		return t.stop(h, rec)
	case offload.OpClose:
		return t.closeHandle(q, h, rec)
	case offload.OpListen:
		t.listen(q, h, rec)
	case offload.OpSubscribe:
		return true, t.subscribe(q, h, rec)
	case offload.OpUnsubscribe:
		t.unsubscribe(q, h, rec)
	case offload.OpAccepted:
		t.accepted(h)
	case offload.OpAcceptBack:
		t.acceptBack(h)
	case offload.OpSetOpt:
		return true, t.setOpt(q, h, rec, payload)
	case offload.OpGetOpt:
		return true, t.getOpt(q, h, rec, payload)
	case offload.OpClaim:
		if !t.formerPassed(q, h) {
			return false, ""
		}
		t.claim(q, h)
	case offload.OpShared:
		return true, t.park(q, h, rec, payload)
	case offload.OpHold:
		return true, t.setHold(h, rec)
	case offload.OpMove:
		return t.move(q, h, rec, payload)
	case offload.OpUnread:
		t.unread(q, h, rec, payload)
	case offload.OpHeard:
		h.unheard = false
		t.inform(h)
	}
	return true, ""
}

// unknown handles a record for a handle that is not (any more) known: it
// crossed the close of its socket. Requests that somebody waits for are
// answered.
func (t *Table) unknown(q *queue, rec offload.Record) string {
	t.stats.unknown++
	q.s.stats.unknown++
	answer := rec.Op == offload.OpListen || rec.Op == offload.OpGetOpt || rec.Op == offload.OpShared ||
		(rec.Op == offload.OpUnsubscribe || rec.Op == offload.OpSetOpt) && rec.Seq != 0
	if answer {
		t.reply(q, rec, ebadf, nil)
	}
	return ""
}

// reply answers a request.
func (t *Table) reply(q *queue, rec offload.Record, errno uint32, payload []byte) {
	t.post(q, offload.OpReply, rec.Sock, rec.Seq, errno, payload)
}
