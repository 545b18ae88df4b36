// SPDX-License-Identifier: Apache-2.0

package difffuzz

import (
	"fmt"
	"strconv"
	"strings"
)

// Slots is how many descriptors a program can hold.
const Slots = 16

// An Op is one line for the player: a name and its words.
type Op []string

func (o Op) String() string { return strings.Join(o, " ") }

// word returns word i, or "" if the line is shorter.
func (o Op) word(i int) string {
	if i < len(o) {
		return o[i]
	}
	return ""
}

// num returns word i as a number.
func (o Op) num(i int) int {
	n, _ := strconv.Atoi(o.word(i))
	return n
}

// has tells whether one of the flags in word i is flag.
func (o Op) has(i int, flag string) bool {
	for f := range strings.SplitSeq(o.word(i), "|") {
		if f == flag {
			return true
		}
	}
	return false
}

// A Program is a list of calls, without the awaits between them.
type Program []Op

// Parse reads a program as String writes it. Empty lines, and what follows a
// #, are ignored; so are awaits, which the model makes anew.
func Parse(text string) (Program, error) {
	var p Program
	for i, line := range strings.Split(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		switch {
		case len(words) == 0 || words[0] == "await":
			continue
		case calls[words[0]] == nil && !isBlock(words[0]):
			return nil, fmt.Errorf("line %d: there is no call %q", i+1, words[0])
		}
		p = append(p, words)
	}
	return p, nil
}

func (p Program) String() string {
	var b strings.Builder
	for _, op := range p {
		fmt.Fprintln(&b, op)
	}
	return b.String()
}

// isBlock tells whether a line begins a block, or is the "back" that ends it.
func isBlock(name string) bool { return name == "child" || name == "thread" || name == "back" }

// Legal leaves out the calls that the model forbids, and returns what is left
// together with the lines for the player, which include the awaits.
func (p Program) Legal() (legal Program, lines []string) {
	m := newModel()
	for i := 0; i < len(p); i++ {
		if !isBlock(p[i][0]) {
			legal, lines = m.play(p[i], legal, lines)
			continue
		}
		name := p[i][0]
		if name == "back" {
			continue
		}
		var ops Program
		var inner []string
		leave := m.enter(name)
		for i++; i < len(p) && p[i][0] != "back"; i++ {
			if !isBlock(p[i][0]) {
				ops, inner = m.play(p[i], ops, inner)
			}
		}
		after := leave()
		if len(ops) > 0 {
			legal = append(append(append(legal, Op{name}), ops...), Op{"back"})
			lines = append(append(append(lines, name), inner...), "back")
			lines = append(lines, after...)
		}
	}
	return legal, lines
}

// play appends a call, if it is legal, and its lines.
func (m *model) play(op Op, legal Program, lines []string) (Program, []string) {
	a, ok := m.do(op)
	if !ok {
		return legal, lines
	}
	lines = append(append(append(lines, a.before...), op.String()), a.after...)
	return append(legal, op), lines
}
