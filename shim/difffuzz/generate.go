// SPDX-License-Identifier: Apache-2.0

package difffuzz

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
)

// Generate draws a legal program of about n calls, with or without children.
func Generate(seed uint64, n int, children bool) Program {
	g := &generator{Rand: rand.New(rand.NewPCG(seed, 0x9e3779b97f4a7c15)), model: newModel(), children: children}
	if g.IntN(10) > 0 {
		g.open()
	}
	for tries := 0; len(g.out) < n && tries < 20*n; tries++ {
		g.step()
	}
	return g.out
}

type generator struct {
	*rand.Rand
	model    *model
	out      Program
	data     int // of the next registration
	children bool
}

// try appends a call if it is legal.
func (g *generator) try(format string, args ...any) bool {
	op := Op(strings.Fields(fmt.Sprintf(format, args...)))
	if _, ok := g.model.do(op); !ok {
		return false
	}
	g.out = append(g.out, op)
	return true
}

// pick is one of the words.
func (g *generator) pick(words ...string) string { return words[g.IntN(len(words))] }

// some is a set of the words, "" if none.
func (g *generator) some(chance float64, words ...string) string {
	var set []string
	for _, w := range words {
		if g.Float64() < chance {
			set = append(set, w)
		}
	}
	return strings.Join(set, "|")
}

// length is a number of bytes, mostly small.
func (g *generator) length() int {
	switch g.IntN(8) {
	case 0:
		return g.IntN(3)
	case 1:
		return g.IntN(20000)
	default:
		return 1 + g.IntN(300)
	}
}

// a is a slot with a description of one of the kinds; now and then, any slot.
func (g *generator) a(kinds ...kind) int {
	if g.IntN(25) == 0 {
		return g.IntN(Slots)
	}
	var fit []int
	for i, s := range g.model.slots {
		for _, k := range kinds {
			if s.d != nil && s.d.kind == k {
				fit = append(fit, i)
			}
		}
	}
	if len(fit) == 0 {
		return g.IntN(Slots)
	}
	return fit[g.IntN(len(fit))]
}

// free is an empty slot, if there is one.
func (g *generator) free() int {
	for range 40 {
		if i := g.IntN(Slots); g.model.slots[i].d == nil {
			return i
		}
	}
	return g.IntN(Slots)
}

// fd is any open descriptor that calls are worth trying on.
func (g *generator) fd() int {
	return g.a(connected, connected, listening, fresh, stream, pipeRead, pipeWrite, event)
}

// open makes a listener with a connection or two: what most calls are about.
func (g *generator) open() {
	family, bindTo, connectTo := "4", g.pick("any4", "lo4"), "lo4"
	if g.IntN(5) == 0 {
		family, bindTo = "6", g.pick("any6", "lo6", "mapped")
		connectTo = map[string]string{"any6": g.pick("lo6", "mapped"), "lo6": "lo6", "mapped": "mapped"}[bindTo]
	}
	l := g.free()
	g.try("socket %d tcp%s %s", l, family, g.some(0.2, "nonblock", "cloexec"))
	if g.IntN(6) == 0 {
		g.epollWith(l)
	}
	g.try("bind %d %s", l, bindTo)
	g.try("listen %d %d", l, 8+g.IntN(100))
	for range 1 + g.IntN(2) {
		c, s := g.free(), g.free()
		g.try("socket %d tcp%s %s", c, family, g.some(0.3, "nonblock", "cloexec"))
		if g.IntN(6) == 0 {
			g.epollWith(c)
		}
		g.try("connect %d %d %s", c, l, connectTo)
		if g.IntN(8) > 0 {
			g.try("accept %d %d %s", l, s, g.pick("", "", "nonblock", "cloexec", "nonblock|cloexec"))
		}
	}
}

// epollWith makes an epoll instance that watches the slot.
func (g *generator) epollWith(fd int) {
	e := g.a(poller)
	if g.model.slots[e].d == nil || g.model.slots[e].d.kind != poller {
		e = g.free()
		g.try("epoll %d %s", e, g.some(0.5, "cloexec"))
	}
	g.register(e, "add", fd)
}

func (g *generator) register(e int, how string, fd int) {
	events := g.pick("in", "in", "out", "in|out", "in|rdhup", "in|out|rdhup", "rdhup")
	if f := g.some(0.25, "et", "oneshot"); f != "" {
		events += "|" + f
	}
	if how == "add" && g.IntN(20) == 0 {
		events = "in|exclusive"
	}
	g.data++
	g.try("ctl %d %s %d %s %d", e, how, fd, events, g.data)
}

// steps are what a program is made of, each as often as it stands here.
var steps []func(g *generator)

func init() {
	steps = []func(g *generator){
		(*generator).send, (*generator).send, (*generator).send, (*generator).send,
		(*generator).receive, (*generator).receive, (*generator).receive, (*generator).receive,
		(*generator).watch, (*generator).watch,
		(*generator).ready, (*generator).ready, (*generator).ready,
		(*generator).look, (*generator).look,
		(*generator).establish, (*generator).establish,
		(*generator).end, (*generator).end,
		(*generator).copy,
		(*generator).option,
		(*generator).kernel,
		(*generator).move,
		(*generator).datagrams, (*generator).datagrams, (*generator).datagrams,
		(*generator).elsewhere,
	}
}

func (g *generator) step() { steps[g.IntN(len(steps))](g) }

func (g *generator) send() {
	fd, n := g.a(connected, connected, connected, stream, pipeWrite), g.length()
	flags := g.some(0.12, "dontwait", "nosignal", "confirm", "eor")
	if g.IntN(50) == 0 {
		flags = "more" // which makes the kernel wait 200 ms
	}
	switch g.IntN(7) {
	case 0:
		g.try("write %d %d", fd, n)
	case 1:
		g.try("writev %d %d", fd, n)
	case 2:
		g.try("sendmsg %d %d %s", fd, n, flags)
	case 3:
		g.try("sendmmsg %d %d %s", fd, n, flags)
	case 4:
		g.try("sendfile %d %d %s", fd, n, g.pick("", "0", strconv.Itoa(g.IntN(n+1))))
	default:
		g.try("send %d %d %s", fd, n, flags)
	}
}

func (g *generator) receive() {
	fd, n := g.a(connected, connected, connected, stream, pipeRead), g.length()
	if g.IntN(3) == 0 {
		n = 30000
	}
	flags := g.some(0.15, "dontwait", "waitall", "trunc", "peek")
	if g.IntN(40) == 0 {
		flags = "errqueue|dontwait"
	}
	switch g.IntN(7) {
	case 0:
		g.try("read %d %d", fd, n)
	case 1:
		g.try("readv %d %d", fd, n)
	case 2:
		g.try("recvmsg %d %d %s", fd, n, flags)
	case 3:
		g.try("recvmmsg %d %d %s", fd, n, flags)
	case 4:
		g.try("recvfrom %d %d %s", fd, n, flags)
	default:
		g.try("recv %d %d %s", fd, n, flags)
	}
}

func (g *generator) watch() {
	switch g.IntN(6) {
	case 0:
		g.try("epoll %d %s", g.free(), g.some(0.5, "cloexec"))
	case 1:
		g.register(g.a(poller), "mod", g.fd())
	case 2:
		g.try("ctl %d del %d", g.a(poller), g.fd())
	case 3:
		if g.IntN(3) == 0 {
			g.register(g.a(poller), "add", g.a(poller))
			return
		}
		fallthrough
	default:
		g.epollWith(g.fd())
	}
}

// ready asks for readiness, without waiting or for a short time.
func (g *generator) ready() {
	ms := 0
	if g.IntN(20) == 0 {
		ms = 5
	}
	if g.IntN(2) == 0 {
		g.try("epwait %d %d %s", g.a(poller), ms, g.pick("", "", "2"))
		return
	}
	name, sets := g.pick("poll", "poll", "ppoll"), ""
	if g.IntN(2) == 0 {
		name = g.pick("select", "select", "pselect")
	}
	for range 1 + g.IntN(4) {
		events := g.pick("in", "out", "in|out", "in|out|pri")
		if strings.HasSuffix(name, "poll") {
			events = g.pick("in", "out", "in|out|rdhup", "pri", "in|rdnorm|wrnorm", "hup")
		}
		fd := g.fd()
		if g.IntN(6) == 0 {
			fd = g.a(poller)
		}
		sets += fmt.Sprintf(" %d %s", fd, events)
	}
	g.try("%s %d%s", name, ms, sets)
}

func (g *generator) look() {
	fd := g.a(connected, connected, listening, fresh, fresh, stream, pipeRead)
	switch g.IntN(9) {
	case 8:
		g.try("tcpinfo %d", fd)
	case 0:
		g.try("sockname %d", fd)
	case 1:
		g.try("peername %d", fd)
	case 2:
		g.try("getfl %d", fd)
	case 3:
		g.try("fstat %d", fd)
	case 4, 5:
		g.try("fionread %d", fd)
	default:
		g.try("getsockopt %d %s", fd, g.pick("SO_ERROR", "SO_ERROR", "SO_TYPE", "SO_DOMAIN", "SO_PROTOCOL",
			"SO_ACCEPTCONN", "SO_REUSEADDR", "SO_KEEPALIVE", "SO_LINGER", "SO_RCVTIMEO", "TCP_NODELAY", "TCP_KEEPIDLE"))
	}
}

func (g *generator) establish() {
	switch g.IntN(10) {
	case 9:
		switch fd := g.a(fresh, listening, connected); g.IntN(4) {
		case 0:
			g.try("disconnect %d", fd)
		default:
			g.try("sendto %d %d lo4 %d", fd, g.a(listening, fresh), g.length())
		}
	case 0:
		g.open()
	case 1:
		g.try("socket %d %s %s", g.free(), g.pick("tcp4", "tcp4", "tcp6"), g.some(0.2, "nonblock", "cloexec"))
	case 2:
		g.try("bind %d %s", g.a(fresh), g.pick("any4", "lo4", "lo4", "any6", "lo6"))
	case 3:
		g.try("bind %d %s %d", g.a(fresh, connected), g.pick("any4", "lo4", "lo6"), g.a(listening))
	case 4:
		g.try("listen %d %d", g.a(fresh, listening, listening, connected), 8)
	case 5, 6:
		g.try("connect %d %d %s", g.a(fresh, fresh, connected), g.a(listening, fresh), g.pick("lo4", "lo4", "lo6", "mapped"))
	default:
		g.try("accept %d %d %s", g.a(listening), g.free(), g.pick("", "", "nonblock", "cloexec", "nonblock|cloexec"))
	}
}

func (g *generator) end() {
	fd := g.a(connected, connected, connected, listening, stream, pipeRead, pipeWrite, poller)
	switch g.IntN(4) {
	case 0, 1:
		g.try("shutdown %d %s", fd, g.pick("rd", "wr", "wr", "rdwr"))
	case 2:
		if g.IntN(3) == 0 {
			g.try("setsockopt %d SO_LINGER 0", fd)
		}
		fallthrough
	default:
		g.try("close %d %s", fd, g.pick("", "", "range"))
	}
}

func (g *generator) copy() {
	fd := g.a(connected, connected, listening, fresh, poller, pipeRead)
	switch g.IntN(3) {
	case 0:
		g.try("dup %d %d %s", fd, g.free(), g.pick("dup", "fcntl", "cloexec"))
	case 1:
		g.try("dup %d %d %s", fd, g.fd(), g.pick("dup2", "dup3"))
	case 2:
		g.try("pass %d %d", g.a(listening, pipeRead), g.free())
	}
}

func (g *generator) option() {
	fd := g.a(connected, connected, listening, fresh, stream)
	switch g.IntN(5) {
	case 0:
		g.try("nonblock %d %d %s", fd, g.IntN(2), g.pick("", "ioctl"))
	case 1:
		g.try("setfd %d %d %s", fd, g.IntN(2), g.pick("", "", "range"))
	default:
		g.anyOption(fd, false)
	}
}

func (g *generator) number(n ...int) int { return n[g.IntN(len(n))] }

// kernel makes what the kernel alone serves.
func (g *generator) kernel() {
	switch g.IntN(3) {
	case 0:
		g.try("pipe %d %d %s", g.free(), g.free(), g.pick("", "nonblock"))
	case 1:
		g.try("unix %d %d %s", g.free(), g.free(), g.pick("", "nonblock"))
	case 2:
		g.try("eventfd %d %d", g.free(), g.IntN(2))
	}
}

// move is bulk: splice, and as much as fits.
func (g *generator) move() {
	switch g.IntN(4) {
	case 0:
		g.try("splice %d %d %d %s", g.a(connected), g.a(pipeWrite), 1+g.length(), g.pick("", "dontwait"))
	case 1:
		g.try("splice %d %d %d %s", g.a(pipeRead), g.a(connected), 1+g.length(), g.pick("", "dontwait"))
	default:
		a := g.a(connected)
		for i, s := range g.model.slots {
			if d := g.model.slots[a].d; d != nil && s.d != nil && s.d == d.peer {
				g.try("flood %d %d", a, i)
				return
			}
		}
	}
}

// elsewhere has the next calls happen in a child or a thread.
func (g *generator) elsewhere() {
	name := g.pick("thread", "thread", "child")
	if name == "child" && (!g.children || g.IntN(3) > 0) {
		return
	}
	outer := g.out
	g.out = nil
	leave := g.model.enter(name)
	for range 1 + g.IntN(5) {
		steps[g.IntN(len(steps)-1)](g) // which elsewhere is the last of
	}
	leave()
	if len(g.out) > 0 {
		outer = append(append(append(outer, Op{name}), g.out...), Op{"back"})
	}
	g.out = outer
}
