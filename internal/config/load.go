// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// MaxFile bounds a file, MaxDepth the nesting in it: a policy file may come
// from an unprivileged user.
const (
	MaxFile  = 256 << 10
	MaxDepth = 32
)

// Error is one mistake in a file.
type Error struct {
	File         string
	Line, Column int
	Err          error
}

func (e *Error) Error() string {
	if e.Line == 0 {
		return fmt.Sprintf("%s: %v", e.File, e.Err)
	}
	return fmt.Sprintf("%s:%d:%d: %v", e.File, e.Line, e.Column, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// Errors is what Load and Parse return: the mistakes in file order.
type Errors []*Error

func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, one := range e {
		lines[i] = one.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap lets errors.Is and errors.As see every mistake.
func (e Errors) Unwrap() []error {
	out := make([]error, len(e))
	for i, one := range e {
		out[i] = one
	}
	return out
}

type fieldError struct {
	key string
	err error
}

func (e *fieldError) Error() string { return e.key + ": " + e.err.Error() }
func (e *fieldError) Unwrap() error { return e.err }

// At lets a Validate method say which key of its struct an error is about, so
// that the message carries that key's line. A nil err stays nil.
func At(key string, err error) error {
	if err == nil {
		return nil
	}
	return &fieldError{key, err}
}

// Load reads the file at path into the struct that into points to.
func Load(path string, into any) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxFile+1))
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	return Parse(path, data, into)
}

// Parse reads data; name stands for the file in messages. An empty file is
// valid and changes nothing, but its Validate methods are asked.
func Parse(name string, data []byte, into any) error {
	d := &decoder{file: name}
	if len(data) > MaxFile {
		return Errors{{File: name, Err: fmt.Errorf("file is larger than %d bytes", MaxFile)}}
	}
	body, err := parseBody(name, data)
	if err != nil {
		return err
	}
	d.root(body, into)
	if len(d.errs) > 0 {
		return d.errs
	}
	return nil
}

// parseBody returns the one document's node, nil when the file holds none.
func parseBody(name string, data []byte) (body ast.Node, err error) {
	// The parser is a third party's and the bytes may be a user's.
	defer func() {
		if r := recover(); r != nil {
			err = Errors{{File: name, Err: fmt.Errorf("the YAML parser gave up: %v", r)}}
		}
	}()
	if line := tooDeep(data); line > 0 {
		return nil, Errors{{File: name, Line: line, Column: 1, Err: fmt.Errorf("nested deeper than %d levels", MaxDepth)}}
	}
	file, err := parser.ParseBytes(data, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		return nil, syntaxError(name, err)
	}
	for _, doc := range file.Docs {
		if doc.Body == nil || doc.Body.Type() == ast.CommentType {
			continue
		}
		if body != nil {
			line, col := pos(doc.Body)
			return nil, Errors{{File: name, Line: line, Column: col, Err: errors.New("second YAML document; keep one, without \"---\" between parts")}}
		}
		body = doc.Body
	}
	return body, nil
}

func syntaxError(name string, err error) error {
	var ye yaml.Error
	if errors.As(err, &ye) && ye.GetToken() != nil && ye.GetToken().Position != nil {
		p := ye.GetToken().Position
		return Errors{{File: name, Line: p.Line, Column: p.Column, Err: fmt.Errorf("YAML syntax: %s", ye.GetMessage())}}
	}
	return Errors{{File: name, Err: fmt.Errorf("YAML syntax: %w", err)}}
}

// tooDeep returns the first line on which more than MaxDepth brackets are open
// or more than MaxDepth block entries begin, 0 if none: the recursive parser
// must not see such a file. It is stricter than YAML (brackets in text count),
// which no sensible file notices.
func tooDeep(data []byte) int {
	open, dashes, line, indent, text := 0, 0, 1, 0, false
	for _, c := range data {
		switch c {
		case '\n':
			line, dashes, indent, text = line+1, 0, 0, false
			continue
		case '[', '{':
			open++
		case ']', '}':
			open = max(0, open-1)
		case '-', '?', ':':
			dashes++
		case ' ':
			if !text {
				indent++
			}
			continue
		default:
			dashes = 0
		}
		text = true
		if open > MaxDepth || dashes > MaxDepth || indent > 8*MaxDepth {
			return line
		}
	}
	return 0
}
