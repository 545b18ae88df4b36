// SPDX-License-Identifier: Apache-2.0

// Package host is hostd as a library: it lets processes attach, makes their
// session memory, tells the DPU about them, watches them die, and keeps the
// list of sockets that may travel between them. The data path does not pass
// through it; while it is down, running sessions go on.
//
// Who owns what: one goroutine per connection reads and answers its process's
// messages, in order. The control client's goroutine calls dpuLost. One small
// goroutine per process waits on its pidfd. Server.mu guards every session,
// grant and registry field; it is held for table work only, never across a
// request to the DPU or a write to a process. Report, SetPolicy and Ready may
// be called by any goroutine.
//
// A session is one process image. It ends when its process is gone, when it
// broke the protocol, when exec replaced it and the new image has taken what
// it inherited, or when the DPU is lost and the process attached anew.
package host
