// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// A filter is the part of AIP-160 that is of use here: comparisons of one field
// with one value, all of which must hold, joined by AND. Field names are the
// message's own, dotted for nested ones. Text compares without regard to case;
// a star at its end or beginning stands for anything. An address (fields local
// and peer) compares with an address, a prefix, or either with a port.

// maxFilter bounds what one request can make the server parse.
const maxFilter = 4096

type filter []predicate

type predicate func(protoreflect.Message) bool

func (f filter) match(m proto.Message) bool {
	for _, p := range f {
		if !p(m.ProtoReflect()) {
			return false
		}
	}
	return true
}

// keep returns the items of a message type that pass the filter.
func keep[T proto.Message](items []T, text string) ([]T, error) {
	if text == "" {
		return items, nil
	}
	var zero T
	f, err := parseFilter(text, zero.ProtoReflect().Descriptor())
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "filter: %v", err)
	}
	kept := items[:0]
	for _, item := range items {
		if f.match(item) {
			kept = append(kept, item)
		}
	}
	return kept, nil
}

func parseFilter(text string, of protoreflect.MessageDescriptor) (filter, error) {
	if len(text) > maxFilter {
		return nil, fmt.Errorf("%d bytes, at most %d", len(text), maxFilter)
	}
	tokens, err := tokenize(text)
	if err != nil {
		return nil, err
	}
	var f filter
	for i := 0; ; i += 4 {
		if i+3 > len(tokens) {
			return nil, fmt.Errorf("incomplete at its end: want field, comparison and value")
		}
		p, err := compile(of, tokens[i], tokens[i+1], tokens[i+2])
		if err != nil {
			return nil, err
		}
		f = append(f, p)
		if i+3 == len(tokens) {
			return f, nil
		}
		if and := tokens[i+3]; and.quoted || and.text != "AND" {
			return nil, fmt.Errorf("found %q where AND was expected", and.text)
		}
	}
}

type token struct {
	text   string
	quoted bool
}

// tokenize splits at white space and around comparison signs. A quoted token
// is Go's or C's string.
func tokenize(text string) ([]token, error) {
	var out []token
	rest := strings.TrimSpace(text)
	for rest != "" {
		n := 0
		switch {
		case rest[0] == '"':
			quoted, err := strconv.QuotedPrefix(rest)
			if err != nil {
				return nil, fmt.Errorf("quotation mark without its end: %s", rest)
			}
			value, err := strconv.Unquote(quoted)
			if err != nil {
				return nil, fmt.Errorf("bad quoted text %s", quoted)
			}
			out = append(out, token{value, true})
			n = len(quoted)
		case strings.IndexByte("=!<>", rest[0]) >= 0:
			n = 1
			if len(rest) > 1 && rest[1] == '=' && rest[0] != '=' {
				n = 2
			}
			out = append(out, token{text: rest[:n]})
		default:
			n = strings.IndexAny(rest, "=!<>\" \t\n")
			if n < 0 {
				n = len(rest)
			}
			out = append(out, token{text: rest[:n]})
		}
		rest = strings.TrimLeft(rest[n:], " \t\n")
	}
	return out, nil
}

// compile makes one comparison.
func compile(of protoreflect.MessageDescriptor, field, op, value token) (predicate, error) {
	path, fd, err := resolve(of, field.text)
	if err != nil {
		return nil, err
	}
	holds, err := operator(op.text)
	if err != nil {
		return nil, err
	}
	order, ordered, err := comparer(fd, value.text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", field.text, err)
	}
	if !ordered && op.text != "=" && op.text != "!=" {
		return nil, fmt.Errorf("%s can only be compared by = and !=, not by %s", field.text, op.text)
	}
	return func(m protoreflect.Message) bool {
		for _, step := range path {
			m = m.Get(step).Message()
		}
		return holds(order(m.Get(fd)))
	}, nil
}

// resolve follows a dotted name to a field with a single value.
func resolve(of protoreflect.MessageDescriptor, name string) (path []protoreflect.FieldDescriptor, fd protoreflect.FieldDescriptor, err error) {
	for part := range strings.SplitSeq(name, ".") {
		if fd != nil {
			if fd.Message() == nil {
				return nil, nil, fmt.Errorf("%s has no field within it", fd.Name())
			}
			path, of = append(path, fd), fd.Message()
		}
		if fd = of.Fields().ByName(protoreflect.Name(part)); fd == nil {
			return nil, nil, fmt.Errorf("no field %q; there are %s", part, fieldNames(of))
		}
		if fd.IsList() || fd.IsMap() {
			return nil, nil, fmt.Errorf("field %s has many values and cannot be compared", part)
		}
	}
	return path, fd, nil
}

func fieldNames(of protoreflect.MessageDescriptor) string {
	names := make([]string, of.Fields().Len())
	for i := range names {
		names[i] = string(of.Fields().Get(i).Name())
	}
	return strings.Join(names, ", ")
}

func operator(op string) (func(int) bool, error) {
	switch op {
	case "=":
		return func(c int) bool { return c == 0 }, nil
	case "!=":
		return func(c int) bool { return c != 0 }, nil
	case "<":
		return func(c int) bool { return c < 0 }, nil
	case "<=":
		return func(c int) bool { return c <= 0 }, nil
	case ">":
		return func(c int) bool { return c > 0 }, nil
	case ">=":
		return func(c int) bool { return c >= 0 }, nil
	}
	return nil, fmt.Errorf("unknown comparison %q; there are = != < <= > >=", op)
}
