// SPDX-License-Identifier: Apache-2.0

// Package session executes the channel protocol on the DPU's side: the host
// processes attached to a shard, their queue pairs, the handles they know
// sockets by, and the sockets themselves on top of the shard's network stack.
//
// Everything of a Table belongs to the shard's loop, which is the only caller
// of its methods; nothing here takes a lock on the data path. The exception is
// the ready list: gVisor tells from any goroutine that a socket has something
// to do (socket.NotifyEvent), which only appends the socket to a lock-free
// list. Endpoints are never called from such a callback.
//
// The host is not trusted. What it sends was copied into DPU memory by
// offload.DevQP, is checked against the session's own tables, and a violation
// of the protocol ends that one session with a logged, counted reason.
package session
