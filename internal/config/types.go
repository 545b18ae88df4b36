// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Size is a number of bytes, written as 65536, 64KiB, 1MiB or 2GiB.
type Size uint64

var sizeUnits = []struct {
	suffix string
	shift  uint
}{{"GiB", 30}, {"MiB", 20}, {"KiB", 10}, {"B", 0}}

// UnmarshalText parses a size.
func (s *Size) UnmarshalText(b []byte) error {
	text := strings.TrimSpace(string(b))
	num, shift := text, uint(0)
	for _, u := range sizeUnits {
		if n, ok := strings.CutSuffix(text, u.suffix); ok {
			num, shift = strings.TrimSpace(n), u.shift
			break
		}
	}
	n, err := strconv.ParseUint(num, 10, 64)
	if err != nil || n > math.MaxUint64>>shift {
		return fmt.Errorf("%q is not a size; write bytes or a whole number with KiB, MiB or GiB", text)
	}
	*s = Size(n << shift)
	return nil
}

// String writes the size in its largest whole unit.
func (s Size) String() string {
	for _, u := range sizeUnits {
		if u.shift > 0 && s != 0 && uint64(s)&(1<<u.shift-1) == 0 {
			return fmt.Sprintf("%d%s", uint64(s)>>u.shift, u.suffix)
		}
	}
	return strconv.FormatUint(uint64(s), 10)
}

// Duration is a time.Duration written as 50us, 20ms or 1m30s.
type Duration time.Duration

// UnmarshalText parses a duration; it is never negative.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil || v < 0 {
		return fmt.Errorf("%q is not a duration; write a number with a unit, as 50us, 20ms or 10s", b)
	}
	*d = Duration(v)
	return nil
}

// String writes the duration as Go does.
func (d Duration) String() string { return time.Duration(d).String() }

// Std is the standard library's type.
func (d Duration) Std() time.Duration { return time.Duration(d) }
