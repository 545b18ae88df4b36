// SPDX-License-Identifier: Apache-2.0

package config

import (
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"
)

// decoder walks the syntax tree and the Go value side by side. It collects
// mistakes instead of stopping at the first.
type decoder struct {
	file string
	errs Errors
}

const maxErrors = 20

func (d *decoder) fail(n ast.Node, format string, args ...any) {
	if len(d.errs) < maxErrors {
		line, col := pos(n)
		d.errs = append(d.errs, &Error{File: d.file, Line: line, Column: col, Err: fmt.Errorf(format, args...)})
	}
}

// pos is where a node begins; for a mapping, its first key.
func pos(n ast.Node) (line, col int) {
	switch m := n.(type) {
	case *ast.MappingNode:
		if len(m.Values) > 0 && !m.IsFlowStyle {
			n = m.Values[0].Key
		}
	case *ast.MappingValueNode:
		n = m.Key
	}
	if n == nil || n.GetToken() == nil || n.GetToken().Position == nil {
		return 0, 0
	}
	p := n.GetToken().Position
	return p.Line, p.Column
}

func (d *decoder) root(n ast.Node, into any) {
	v := reflect.ValueOf(into)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
		d.errs = append(d.errs, &Error{File: d.file, Err: fmt.Errorf("cannot decode into a %T", into)})
		return
	}
	if n == nil {
		d.validate(nil, v.Elem(), nil)
		return
	}
	d.value(n, v.Elem(), 0)
}

func (d *decoder) value(n ast.Node, v reflect.Value, depth int) {
	switch n.(type) {
	case *ast.AnchorNode, *ast.AliasNode, *ast.MergeKeyNode, *ast.TagNode:
		d.fail(n, "anchors, aliases and tags are not supported; write the value out")
		return
	case *ast.NullNode:
		d.fail(n, "no value; give one or remove the line")
		return
	}
	if depth > MaxDepth {
		d.fail(n, "nested deeper than %d levels", MaxDepth)
		return
	}
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		d.text(n, u)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		p := reflect.New(v.Type().Elem())
		d.value(n, p.Elem(), depth)
		v.Set(p)
	case reflect.Struct:
		d.structure(n, v, depth)
	case reflect.Slice:
		d.list(n, v, depth)
	case reflect.Map:
		d.dict(n, v, depth)
	default:
		d.scalar(n, v)
	}
}

func (d *decoder) text(n ast.Node, u encoding.TextUnmarshaler) {
	s, ok := scalarText(n)
	if !ok {
		d.fail(n, "want a single value, found %s", kindName(n))
		return
	}
	if err := u.UnmarshalText([]byte(s)); err != nil {
		d.fail(n, "%w", err)
	}
}

// pairs are the entries of a mapping. The two node types are the library's: a
// mapping of one entry may come without its MappingNode.
func pairs(n ast.Node) ([]*ast.MappingValueNode, bool) {
	switch m := n.(type) {
	case *ast.MappingNode:
		return m.Values, true
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{m}, true
	}
	return nil, false
}

func (d *decoder) structure(n ast.Node, v reflect.Value, depth int) {
	entries, ok := pairs(n)
	if !ok {
		d.fail(n, "want keys and values (%s), found %s", strings.Join(keys(v.Type()), ", "), kindName(n))
		return
	}
	if l, ok := v.Addr().Interface().(interface{ SetLine(int) }); ok {
		line, _ := pos(n)
		l.SetLine(line)
	}
	before := len(d.errs)
	seen := make(map[string]ast.Node, len(entries))
	for _, e := range entries {
		key, ok := d.key(e, seen)
		if !ok {
			continue
		}
		f, ok := field(v, key)
		if !ok {
			d.fail(e.Key, "unknown key %q; %s", key, suggest(key, keys(v.Type())))
			continue
		}
		seen[key] = e.Value
		d.value(e.Value, f, depth+1)
	}
	if len(d.errs) == before {
		d.validate(n, v, seen)
	}
}

// key returns the text of an entry's key and records it; false when it cannot
// be used.
func (d *decoder) key(e *ast.MappingValueNode, seen map[string]ast.Node) (string, bool) {
	if _, merge := e.Key.(*ast.MergeKeyNode); merge {
		d.fail(e.Key, "merge keys are not supported; write the keys out")
		return "", false
	}
	key, ok := scalarText(e.Key)
	if !ok {
		d.fail(e.Key, "want a plain key")
		return "", false
	}
	if _, twice := seen[key]; twice {
		d.fail(e.Key, "key %q is given twice", key)
		return "", false
	}
	if _, null := e.Value.(*ast.NullNode); null || e.Value == nil {
		d.fail(e.Key, "key %q has no value; give one or remove the key to keep the default", key)
		return "", false
	}
	seen[key] = e.Value
	return key, true
}

func (d *decoder) validate(n ast.Node, v reflect.Value, seen map[string]ast.Node) {
	val, ok := v.Addr().Interface().(interface{ Validate() error })
	if !ok {
		return
	}
	err := val.Validate()
	if err == nil {
		return
	}
	all := []error{err}
	if multi, ok := err.(interface{ Unwrap() []error }); ok {
		all = multi.Unwrap()
	}
	for _, err := range all {
		var fe *fieldError
		if errors.As(err, &fe) && seen[fe.key] != nil {
			d.fail(seen[fe.key], "%w", fe.err)
			continue
		}
		d.fail(n, "%w", err)
	}
}

func (d *decoder) list(n ast.Node, v reflect.Value, depth int) {
	seq, ok := n.(*ast.SequenceNode)
	if !ok {
		d.fail(n, "want a list (\"- …\" or […]), found %s", kindName(n))
		return
	}
	out := reflect.MakeSlice(v.Type(), len(seq.Values), len(seq.Values))
	for i, item := range seq.Values {
		d.value(item, out.Index(i), depth+1)
	}
	v.Set(out)
}

func (d *decoder) dict(n ast.Node, v reflect.Value, depth int) {
	entries, ok := pairs(n)
	if !ok || v.Type().Key().Kind() != reflect.String {
		d.fail(n, "want keys and values, found %s", kindName(n))
		return
	}
	out := reflect.MakeMapWithSize(v.Type(), len(entries))
	seen := make(map[string]ast.Node, len(entries))
	for _, e := range entries {
		key, ok := d.key(e, seen)
		if !ok {
			continue
		}
		item := reflect.New(v.Type().Elem()).Elem()
		d.value(e.Value, item, depth+1)
		out.SetMapIndex(reflect.ValueOf(key).Convert(v.Type().Key()), item)
	}
	v.Set(out)
}

func (d *decoder) scalar(n ast.Node, v reflect.Value) {
	s, ok := scalarText(n)
	if !ok {
		d.fail(n, "want a single value, found %s", kindName(n))
		return
	}
	switch v.Kind() {
	case reflect.String:
		if _, ok := n.(*ast.StringNode); !ok {
			if _, ok := n.(*ast.LiteralNode); !ok {
				d.fail(n, "want text, found %s; put it in quotes if it is meant as text", kindName(n))
				return
			}
		}
		v.SetString(s)
	case reflect.Bool:
		b, ok := n.(*ast.BoolNode)
		if !ok {
			d.fail(n, "want true or false, found %s", describe(n, s))
			return
		}
		v.SetBool(b.Value)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		i, err := strconv.ParseInt(s, 10, v.Type().Bits())
		if err != nil {
			d.fail(n, "want a whole number%s, found %s", intRange(v), describe(n, s))
			return
		}
		v.SetInt(i)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		u, err := strconv.ParseUint(s, 10, v.Type().Bits())
		if err != nil {
			d.fail(n, "want a whole number%s, found %s", intRange(v), describe(n, s))
			return
		}
		v.SetUint(u)
	case reflect.Float64:
		f, err := strconv.ParseFloat(s, 64)
		if err != nil || f != f {
			d.fail(n, "want a number, found %s", describe(n, s))
			return
		}
		v.SetFloat(f)
	default:
		d.fail(n, "cannot decode into a %s", v.Type())
	}
}

func intRange(v reflect.Value) string {
	switch v.Kind() {
	case reflect.Uint8:
		return " from 0 to 255"
	case reflect.Uint16:
		return " from 0 to 65535"
	case reflect.Uint32, reflect.Uint64, reflect.Uint:
		return " from 0"
	}
	return ""
}

// scalarText is the text of a scalar as written (quotes removed).
func scalarText(n ast.Node) (string, bool) {
	switch s := n.(type) {
	case *ast.StringNode:
		return s.Value, true
	case *ast.LiteralNode:
		return s.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return strings.TrimSpace(n.GetToken().Value), true
	}
	return "", false
}

func kindName(n ast.Node) string {
	switch n.(type) {
	case *ast.SequenceNode:
		return "a list"
	case *ast.MappingNode, *ast.MappingValueNode:
		return "keys and values"
	case *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		return "a number"
	case *ast.BoolNode:
		return "true or false"
	case *ast.StringNode, *ast.LiteralNode:
		return "text"
	}
	return "something else"
}

func describe(n ast.Node, s string) string {
	if len(s) > 40 {
		return kindName(n)
	}
	return strconv.Quote(s)
}

// field returns the struct field with the given key.
func field(v reflect.Value, key string) (reflect.Value, bool) {
	t := v.Type()
	for i := range t.NumField() {
		if t.Field(i).Tag.Get("yaml") == key && key != "" {
			return v.Field(i), true
		}
	}
	return reflect.Value{}, false
}

func keys(t reflect.Type) []string {
	var out []string
	for i := range t.NumField() {
		if k := t.Field(i).Tag.Get("yaml"); k != "" {
			out = append(out, k)
		}
	}
	return out
}

// suggest names the nearest known key, or all of them.
func suggest(key string, known []string) string {
	best, at := 3, ""
	for _, k := range known {
		if n := distance(key, k); n < best {
			best, at = n, k
		}
	}
	if at != "" {
		return fmt.Sprintf("did you mean %q?", at)
	}
	return "known keys: " + strings.Join(slices.Sorted(slices.Values(known)), ", ")
}

// distance is the number of single-letter edits between two words.
func distance(a, b string) int {
	if len(a) > 64 {
		return len(a)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diag
			if a[i] != b[j] {
				cost = 1 + min(diag, row[j], row[j+1])
			}
			diag, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}
