// SPDX-License-Identifier: Apache-2.0

package suites

import (
	"path"
	"reflect"
	"slices"
	"testing"
)

// difference is a case that passes natively and does not offloaded.
type difference struct {
	module, name string
	got          outcome
	why          string // of a known one
}

// score is what came of a module.
type score struct {
	module      module
	cases       int // in all
	native      int // that pass on kernel sockets
	offloaded   int // of these, that pass on the DPU
	again       int // of these, at the second attempt only
	differences []difference
	stats       statistics
}

// counts says if the module proves anything about offloaded sockets.
func (s *score) counts() bool { return s.stats.Offloaded > 0 }

// compare scores one module. A case that the shim's side has not met at all is
// lost.
func compare(m module, n, o *sideResult) *score {
	s := &score{module: m, cases: len(n.order), stats: o.stats}
	for _, name := range n.order {
		if n.cases[name].Event != "ok" {
			continue
		}
		s.native++
		got, ok := o.cases[name]
		if !ok {
			got = outcome{Event: "lost", Detail: "it was not run"}
		}
		if got.Event == "ok" {
			s.offloaded++
		} else {
			s.differences = append(s.differences, difference{module: m.name, name: name, got: got})
		}
	}
	return s
}

// retry takes the second attempt of the cases that differ: those that pass
// alone were the victims of a loaded machine, and are counted as such.
func (s *score) retry(o *sideResult) {
	s.differences = slices.DeleteFunc(s.differences, func(d difference) bool {
		if o.cases[d.name].Event != "ok" {
			return false
		}
		s.offloaded++
		s.again++
		return true
	})
}

func (s *score) names() (names []string) {
	for _, d := range s.differences {
		names = append(names, d.name)
	}
	return names
}

// explain gives each known difference its reason, and returns the others.
func (s *score) explain() (unknown []difference) {
	for i, d := range s.differences {
		for _, k := range known {
			if ok, _ := path.Match(k.pattern, d.name); ok {
				s.differences[i].why = k.why
			}
		}
		if s.differences[i].why == "" {
			unknown = append(unknown, d)
		}
	}
	return unknown
}

func TestScore(t *testing.T) {
	side := func(events ...string) *sideResult {
		r := &sideResult{cases: map[string]outcome{}}
		for i, e := range events {
			if e != "" {
				r.note(string(rune('a'+i)), outcome{Event: e})
			}
		}
		return r
	}
	m := module{name: "m"}
	//              a     b     c       d       e     f     g
	n := side("ok", "ok", "fail", "skip", "ok", "ok", "ok")
	o := side("ok", "fail", "ok", "ok", "lost", "", "skip")
	s := compare(m, n, o)
	if s.cases != 7 || s.native != 5 || s.offloaded != 1 {
		t.Errorf("%d cases, %d natively, %d offloaded; want 7, 5, 1", s.cases, s.native, s.offloaded)
	}
	if want := []string{"b", "e", "f", "g"}; !reflect.DeepEqual(s.names(), want) {
		t.Errorf("differences %v, want %v", s.names(), want)
	}
	if s.counts() {
		t.Error("a module without an offloaded socket counts")
	}
	s.retry(side("", "ok", "", "", "fail"))
	if want := []string{"e", "f", "g"}; s.offloaded != 2 || s.again != 1 || !reflect.DeepEqual(s.names(), want) {
		t.Errorf("after the second attempt: %d offloaded, differences %v", s.offloaded, s.names())
	}
	if unknown := s.explain(); len(unknown) != 3 {
		t.Errorf("%d differences are unknown, want 3", len(unknown))
	}
}
