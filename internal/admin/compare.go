// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"cmp"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "pno/proto/pno/admin/v1"
)

// comparer returns how a field's value compares with text: below, equal or
// above. ordered is false when only equality has a meaning.
func comparer(fd protoreflect.FieldDescriptor, text string) (order func(protoreflect.Value) int, ordered bool, err error) {
	switch fd.Kind() {
	case protoreflect.StringKind:
		match, err := textMatcher(fd.Name(), text)
		return func(v protoreflect.Value) int { return equality(match(v.String())) }, false, err
	case protoreflect.BoolKind:
		want, err := strconv.ParseBool(text)
		if err != nil {
			return nil, false, fmt.Errorf("want true or false, not %q", text)
		}
		return func(v protoreflect.Value) int { return equality(v.Bool() == want) }, false, nil
	case protoreflect.EnumKind:
		want, err := enumNumber(fd.Enum(), text)
		return func(v protoreflect.Value) int { return equality(v.Enum() == want) }, false, err
	case protoreflect.Uint32Kind, protoreflect.Uint64Kind:
		want, err := strconv.ParseUint(text, 0, 64)
		if err != nil {
			return nil, false, fmt.Errorf("want a whole number, not %q", text)
		}
		return func(v protoreflect.Value) int { return cmp.Compare(v.Uint(), want) }, true, nil
	case protoreflect.Int32Kind, protoreflect.Int64Kind:
		want, err := strconv.ParseInt(text, 0, 64)
		if err != nil {
			return nil, false, fmt.Errorf("want a whole number, not %q", text)
		}
		return func(v protoreflect.Value) int { return cmp.Compare(v.Int(), want) }, true, nil
	case protoreflect.MessageKind:
		return timeComparer(fd, text)
	}
	return nil, false, fmt.Errorf("cannot be compared")
}

func timeComparer(fd protoreflect.FieldDescriptor, text string) (func(protoreflect.Value) int, bool, error) {
	switch fd.Message().FullName() {
	case "google.protobuf.Timestamp":
		want, err := time.Parse(time.RFC3339, text)
		if err != nil {
			return nil, false, fmt.Errorf("want a time such as 2026-01-31T12:00:00Z, not %q", text)
		}
		return func(v protoreflect.Value) int {
			return v.Message().Interface().(*timestamppb.Timestamp).AsTime().Compare(want)
		}, true, nil
	case "google.protobuf.Duration":
		want, err := time.ParseDuration(text)
		if err != nil {
			return nil, false, fmt.Errorf("want a duration such as 1.5s, not %q", text)
		}
		return func(v protoreflect.Value) int {
			return cmp.Compare(v.Message().Interface().(*durationpb.Duration).AsDuration(), want)
		}, true, nil
	}
	return nil, false, fmt.Errorf("has fields within it (%s); name one of them", fieldNames(fd.Message()))
}

func equality(same bool) int {
	if same {
		return 0
	}
	return 1
}

// enumNumber finds a value by its name without the prefix of its type: up for
// SESSION_STATE_UP.
func enumNumber(ed protoreflect.EnumDescriptor, text string) (protoreflect.EnumNumber, error) {
	var names []string
	for i := range ed.Values().Len() {
		v := ed.Values().Get(i)
		name := adminv1.EnumName(v)
		if strings.EqualFold(name, text) {
			return v.Number(), nil
		}
		names = append(names, name)
	}
	return 0, fmt.Errorf("no value %q; there are %s", text, strings.Join(names, ", "))
}

func textMatcher(field protoreflect.Name, text string) (func(string) bool, error) {
	if field == "local" || field == "peer" {
		return addressMatcher(text)
	}
	text = strings.ToLower(text)
	inner, anyEnd := strings.CutSuffix(text, "*")
	inner, anyStart := strings.CutPrefix(inner, "*")
	return func(s string) bool {
		s = strings.ToLower(s)
		switch {
		case anyStart && anyEnd:
			return strings.Contains(s, inner)
		case anyStart:
			return strings.HasSuffix(s, inner)
		case anyEnd:
			return strings.HasPrefix(s, inner)
		}
		return s == text
	}, nil
}

// addressMatcher takes an address, a prefix, either with a port, or :port.
func addressMatcher(text string) (func(string) bool, error) {
	bad := fmt.Errorf("want an address, a prefix, ADDRESS:PORT, [ADDRESS]:PORT or :PORT, not %q", text)
	host, port, hasPort := text, uint64(0), false
	if addr, err := netip.ParseAddr(text); err == nil {
		host = addr.String()
	} else if i := strings.LastIndexByte(text, ':'); i >= 0 && (i == 0 || !strings.Contains(text[:i], ":") || text[i-1] == ']') {
		var err error
		if port, err = strconv.ParseUint(text[i+1:], 10, 16); err != nil {
			return nil, bad
		}
		hasPort = true
		host = strings.TrimSuffix(strings.TrimPrefix(text[:i], "["), "]")
	}
	prefix, err := parsePrefix(host)
	if err != nil {
		return nil, bad
	}
	return func(s string) bool {
		have, err := netip.ParseAddrPort(s)
		if err != nil {
			return false
		}
		return (!hasPort || uint64(have.Port()) == port) &&
			(!prefix.IsValid() || prefix.Contains(have.Addr().Unmap().WithZone("")))
	}, nil
}

// parsePrefix reads an address or prefix; empty or * is the zero Prefix.
func parsePrefix(host string) (netip.Prefix, error) {
	if host == "" || host == "*" {
		return netip.Prefix{}, nil
	}
	if strings.Contains(host, "/") {
		p, err := netip.ParsePrefix(host)
		return p.Masked(), err
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return netip.Prefix{}, err
	}
	addr = addr.Unmap().WithZone("")
	return netip.PrefixFrom(addr, addr.BitLen()), nil
}
