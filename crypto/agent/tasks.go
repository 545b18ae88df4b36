// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"sync"
	"sync/atomic"
	"time"

	"pno/crypto/client"
)

// task is an operation of a connection.
type task struct {
	conn     *conn
	id       uint64
	start    time.Time
	deadline time.Time // zero: the client's limit
	op       client.Op
}

// tasks are goroutines that run tasks, as many as there are. Some wait for the
// next one: verifying a signature needs a deep stack, which a new goroutine would
// have to grow each time.
type tasks struct {
	next chan *task
	stop chan struct{}
	idle *atomic.Int32
	all  *sync.WaitGroup
}

const mostIdle = 64

func newTasks() tasks {
	return tasks{next: make(chan *task), stop: make(chan struct{}), idle: new(atomic.Int32), all: new(sync.WaitGroup)}
}

func (s *tasks) do(t *task) {
	select {
	case s.next <- t:
	default: // nobody waits
		s.all.Go(func() { s.work(t) })
	}
}

func (s *tasks) work(t *task) {
	for {
		t.run()
		if s.idle.Add(1) > mostIdle {
			s.idle.Add(-1)
			return
		}
		select {
		case t = <-s.next:
			s.idle.Add(-1)
		case <-s.stop:
			return
		}
	}
}

// end waits for the goroutines. Nothing is done after it.
func (s *tasks) end() {
	close(s.stop)
	s.all.Wait()
}
