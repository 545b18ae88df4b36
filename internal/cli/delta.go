// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "pno/proto/pno/admin/v1"
)

// delta returns what was counted from before to now. What is marked gauge, and
// times, are now's. A total that went back (the daemon was started anew) is
// counted from zero.
func delta(now, before *adminv1.Stats) *adminv1.Stats {
	out := proto.Clone(now).(*adminv1.Stats)
	if before != nil && proto.Equal(now.GetStartTime(), before.GetStartTime()) {
		subtract(out.ProtoReflect(), before.ProtoReflect())
	}
	return out
}

func subtract(from, what protoreflect.Message) {
	fields := from.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		switch {
		case proto.GetExtension(fd.Options(), adminv1.E_Gauge).(bool):
		case fd.IsMap():
			m, old := from.Get(fd).Map(), what.Get(fd).Map()
			for k, v := range m.Range {
				if o := old.Get(k); o.IsValid() {
					m.Set(k, protoreflect.ValueOfUint64(less(v.Uint(), o.Uint())))
				}
			}
		case fd.IsList():
			if isCounter(fd) {
				subtractCounters(from.Get(fd).List(), what.Get(fd).List())
			}
		case fd.Kind() == protoreflect.Uint64Kind:
			from.Set(fd, protoreflect.ValueOfUint64(less(from.Get(fd).Uint(), what.Get(fd).Uint())))
		case fd.Message() != nil && from.Has(fd):
			switch m := from.Mutable(fd).Message().Interface().(type) {
			case *timestamppb.Timestamp:
			case *durationpb.Duration:
				old := what.Get(fd).Message().Interface().(*durationpb.Duration)
				if d := m.AsDuration() - old.AsDuration(); d >= 0 {
					from.Set(fd, protoreflect.ValueOfMessage(durationpb.New(d).ProtoReflect()))
				}
			default:
				subtract(m.ProtoReflect(), what.Get(fd).Message())
			}
		}
	}
}

func subtractCounters(from, what protoreflect.List) {
	old := make(map[string]uint64, what.Len())
	for i := range what.Len() {
		c := what.Get(i).Message().Interface().(*adminv1.Counter)
		old[c.GetName()] = c.GetValue()
	}
	for i := range from.Len() {
		if c := from.Get(i).Message().Interface().(*adminv1.Counter); !c.GetGauge() {
			c.Value = less(c.GetValue(), old[c.GetName()])
		}
	}
}

func less(now, before uint64) uint64 {
	if before > now {
		return now
	}
	return now - before
}
