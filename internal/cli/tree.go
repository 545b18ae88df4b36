// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"time"

	"github.com/goccy/go-yaml"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "pno/proto/pno/admin/v1"
)

// A tree is a message as it is printed in JSON and YAML: names from the .proto
// files in their order, whole numbers as numbers, times in RFC 3339, durations
// as seconds under a name that says so, enum values without their prefix. A
// message that is not set is left out; any other field is always there.

// object is a JSON object whose members keep their order.
type object []member

type member struct {
	key   string
	value any
}

// MarshalJSON writes the members in order.
func (o object) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, m := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		for j, part := range []any{m.key, m.value} {
			if j > 0 {
				b.WriteByte(':')
			}
			enc := json.NewEncoder(&b)
			enc.SetEscapeHTML(false)
			if err := enc.Encode(part); err != nil {
				return nil, err
			}
			b.Truncate(b.Len() - 1) // Encode's newline
		}
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// MarshalYAML writes the members in order.
func (o object) MarshalYAML() (any, error) {
	s := make(yaml.MapSlice, len(o))
	for i, m := range o {
		s[i] = yaml.MapItem{Key: m.key, Value: m.value}
	}
	return s, nil
}

// treeOf makes a tree of a message.
func treeOf(m protoreflect.Message) object {
	o := object{}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		key, v := string(fd.Name()), m.Get(fd)
		switch {
		case fd.IsMap():
			o = append(o, member{key, treeOfMap(fd, v.Map())})
		case fd.IsList() && isCounter(fd):
			o = append(o, member{key, treeOfCounters(v.List())})
		case fd.IsList():
			o = append(o, member{key, treeOfList(fd, v.List())})
		case fd.Message() == nil:
			o = append(o, member{key, leaf(fd, v)})
		case m.Has(fd):
			if _, ok := v.Message().Interface().(*durationpb.Duration); ok {
				key += "_seconds"
			}
			o = append(o, member{key, leaf(fd, v)})
		}
	}
	return o
}

func leaf(fd protoreflect.FieldDescriptor, v protoreflect.Value) any {
	switch fd.Kind() {
	case protoreflect.EnumKind:
		if ev := fd.Enum().Values().ByNumber(v.Enum()); ev != nil {
			return adminv1.EnumName(ev)
		}
		return int32(v.Enum()) // from a newer daemon
	case protoreflect.MessageKind:
		switch m := v.Message().Interface().(type) {
		case *timestamppb.Timestamp:
			return m.AsTime().Format(time.RFC3339Nano)
		case *durationpb.Duration:
			return m.AsDuration().Seconds()
		}
		return treeOf(v.Message())
	}
	return v.Interface()
}

func treeOfList(fd protoreflect.FieldDescriptor, list protoreflect.List) []any {
	out := make([]any, list.Len())
	for i := range out {
		out[i] = leaf(fd, list.Get(i))
	}
	return out
}

func treeOfMap(fd protoreflect.FieldDescriptor, m protoreflect.Map) object {
	values := make(map[string]any, m.Len())
	for k, v := range m.Range {
		values[k.String()] = leaf(fd.MapValue(), v)
	}
	o := make(object, 0, len(values))
	for _, k := range slices.Sorted(maps.Keys(values)) {
		o = append(o, member{k, values[k]})
	}
	return o
}

func isCounter(fd protoreflect.FieldDescriptor) bool {
	return fd.Message() != nil && fd.Message().FullName() == (*adminv1.Counter)(nil).ProtoReflect().Descriptor().FullName()
}

// treeOfCounters prints a set of counters as what they are to a reader: names
// with numbers.
func treeOfCounters(list protoreflect.List) object {
	o := make(object, list.Len())
	for i := range o {
		c := list.Get(i).Message().Interface().(*adminv1.Counter)
		o[i] = member{c.GetName(), c.GetValue()}
	}
	return o
}
