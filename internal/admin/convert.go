// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
)

// count turns a gauge into a message's number; gauges that count down from
// several goroutines may be seen below zero for a moment.
func count(n int) uint64 { return uint64(max(n, 0)) }

// timestamp leaves a time that is not known unset.
func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// text makes a message's string of text that others chose: a process may have
// any bytes for its name, and gRPC fails the whole answer if one of its strings
// is not UTF-8.
func text(s string) string { return strings.ToValidUTF8(s, "?") }

func texts(in []string) []string {
	out := make([]string, len(in))
	for i, s := range in {
		out[i] = text(s)
	}
	return out
}

// reasons is text for the keys of a map. Those that become alike are added up.
func reasons(in map[string]uint64) map[string]uint64 {
	out := make(map[string]uint64, len(in))
	for reason, n := range in {
		out[text(reason)] += n
	}
	return out
}
