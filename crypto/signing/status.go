// SPDX-License-Identifier: Apache-2.0

package signing

import (
	"errors"
	"fmt"
)

// Status is how an operation ended. The numbers are those of pno.crypto.v1 and
// of crypto/agent/protocol.h.
type Status uint8

// The ways to end.
const (
	OK               Status = 1
	UnknownKey       Status = 2
	Denied           Status = 3
	BadScheme        Status = 4
	BadInput         Status = 5
	RateLimited      Status = 6
	Overloaded       Status = 7
	DeadlineExceeded Status = 8
	Unavailable      Status = 9
	Internal         Status = 10
)

// Statuses are all of them, in order.
var Statuses = []Status{OK, UnknownKey, Denied, BadScheme, BadInput, RateLimited, Overloaded, DeadlineExceeded, Unavailable, Internal}

var statusNames = [...]string{"unspecified", "ok", "unknown_key", "denied", "bad_scheme", "bad_input", "rate_limited",
	"overloaded", "deadline_exceeded", "unavailable", "internal"}

// String is the name in metrics and audit records.
func (s Status) String() string {
	if int(s) < len(statusNames) {
		return statusNames[s]
	}
	return fmt.Sprintf("status_%d", uint8(s))
}

// Elsewhere tells whether another worker may well answer better: the fault is
// the worker's, not the request's.
func (s Status) Elsewhere() bool {
	switch s {
	case OK, Denied, BadScheme, BadInput, RateLimited, DeadlineExceeded:
		return false
	}
	return true
}

// Error is a Status other than OK, with what there is to say about it.
type Error struct {
	Status Status
	Text   string
}

// Errorf makes an Error.
func Errorf(s Status, format string, args ...any) *Error {
	return &Error{s, fmt.Sprintf(format, args...)}
}

func (e *Error) Error() string {
	if e.Text == "" {
		return "private-key operation: " + e.Status.String()
	}
	return "private-key operation: " + e.Status.String() + ": " + e.Text
}

// Is lets errors.Is match by status: errors.Is(err, &Error{Status: Denied}).
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Text == "" && t.Status == e.Status
}

// StatusOf is the Status of an error that an operation returned; Internal for
// an error without one, OK for nil.
func StatusOf(err error) Status {
	if err == nil {
		return OK
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Status
	}
	return Internal
}
