// SPDX-License-Identifier: Apache-2.0

package host

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pno/host/control/controltest"
	"pno/internal/attach"
)

// sent registers a socket that is about to be sent, under a token that the DPU
// knows, and returns its placeholder.
func (b *bench) sent(t *testing.T, c *client, kind uint32, token string) (fd int, cookie uint64) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	b.dpu.Grant(tokenHex(token))
	m := &attach.RegisterSocket{Cookie: cookieOf(fd), Token: tokenOf(token)}
	m.Kind, m.Handle[0], m.Handle[1] = kind, handle, handle+1
	if a, ok := c.ask(m, fd).Msg.(*attach.Ack); !ok || a.Err != 0 {
		t.Fatalf("register: %+v", a)
	}
	return fd, m.Cookie
}

// A socket is in a message when its sender ends: whoever takes the message has
// it, and it ends with its file.
func TestInTransit(t *testing.T) {
	for name, kind := range map[string]uint32{"listener": attach.SockListener, "bound": attach.SockBound} {
		t.Run(name, func(t *testing.T) { inTransit(t, kind) })
	}
}

func inTransit(t *testing.T, kind uint32) {
	b := newBench(t, nil)
	sender := b.attachAs(t, hello("sender"))
	fd, cookie := b.sent(t, sender, kind, "T")
	if a := sender.ask(&attach.UnregisterSocket{Cookie: cookie}).Msg.(*attach.Ack); a.Err != 0 {
		t.Fatalf("unregister: %d", a.Err)
	}
	time.Sleep(3 * firstLook)
	receiver := b.attachAs(t, hello("receiver"))
	if _, ok := receiver.ask(&attach.LookupSocket{Cookie: cookie}).Msg.(*attach.Socket); ok {
		t.Error("given to one who has not shown it")
	}
	got, ok := receiver.ask(&attach.LookupSocket{Cookie: cookie}, fd).Msg.(*attach.Socket)
	if !ok || got.Handle[0] != controltest.OfGrant || got.Handle[1] != controltest.OfGrant {
		t.Fatalf("lookup: %+v", got)
	}
	unix.Close(fd)
	// A session says that it has it.
	time.Sleep(3 * firstLook)
	if b.dpu.Grants() != 1 {
		t.Error("given up with a holder left")
	}
	receiver.ask(&attach.UnregisterSocket{Cookie: cookie})
	eventually(t, "the socket is given up", func() bool { return b.dpu.Grants() == 0 })
}

// A listener that nobody receives ends with the last reference to its file.
func TestListenerLostInTransit(t *testing.T) {
	b := newBench(t, nil)
	sender := b.attachAs(t, hello("sender"))
	fd, cookie := b.sent(t, sender, attach.SockListener, "T")
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Sendmsg(pair[0], []byte("x"), unix.UnixRights(fd), nil, 0); err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	sender.ask(&attach.UnregisterSocket{Cookie: cookie})
	time.Sleep(20 * firstLook)
	if b.dpu.Grants() != 1 {
		t.Fatal("given up while it was in a message")
	}
	unix.Close(pair[0])
	unix.Close(pair[1])
	eventually(t, "the listener is given up", func() bool { return b.dpu.Grants() == 0 })
}

// Who sends a listener that is kept already adds no second token.
func TestListenerSentTwice(t *testing.T) {
	b := newBench(t, nil)
	sender := b.attachAs(t, hello("sender"))
	fd, cookie := b.sent(t, sender, attach.SockListener, "T")
	defer unix.Close(fd)
	b.dpu.Grant(tokenHex("U"))
	m := &attach.RegisterSocket{Cookie: cookie, Token: tokenOf("U")}
	m.Kind, m.Handle[0] = attach.SockListener, handle
	sender.ask(m, fd)
	eventually(t, "the second token is given up", func() bool { return b.dpu.Grants() == 1 })
}

// A bound socket that was sent, and listens now, is another thing to keep.
func TestBoundSentThenListener(t *testing.T) {
	b := newBench(t, nil)
	sender := b.attachAs(t, hello("sender"))
	fd, cookie := b.sent(t, sender, attach.SockBound, "T")
	b.dpu.Grant(tokenHex("U"))
	m := &attach.RegisterSocket{Cookie: cookie, Token: tokenOf("U")}
	m.Kind, m.Handle[0], m.Handle[1] = attach.SockListener, handle, handle+1
	sender.ask(m, fd)
	eventually(t, "the first token is given up", func() bool { return b.dpu.Grants() == 1 })
	sender.ask(&attach.UnregisterSocket{Cookie: cookie})
	receiver := b.attachAs(t, hello("receiver"))
	got, ok := receiver.ask(&attach.LookupSocket{Cookie: cookie}, fd).Msg.(*attach.Socket)
	if !ok || got.Kind != attach.SockListener {
		t.Errorf("lookup: %+v", got)
	}
	unix.Close(fd)
}
