// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// policyName is the name of the one policy of a host.
const policyName = "policy"

func sessionName(session uint64) string { return fmt.Sprintf("sessions/%d", session) }

func socketName(session uint64, shard, handle uint32) string {
	return fmt.Sprintf("sessions/%d/sockets/%d-%08x", session, shard, handle)
}

func ringName(session uint64, channel, shard uint32) string {
	return fmt.Sprintf("sessions/%d/rings/%d-%d", session, channel, shard)
}

func shardName(shard uint32) string { return fmt.Sprintf("shards/%d", shard) }

func linkName(link int) string { return fmt.Sprintf("links/%d", link) }

// parseParent reads sessions/{session}. all is true for sessions/- and for an
// empty parent.
func parseParent(parent string) (session uint64, all bool, err error) {
	if parent == "" || parent == "sessions/-" {
		return 0, true, nil
	}
	id, ok := strings.CutPrefix(parent, "sessions/")
	if ok {
		session, err = strconv.ParseUint(id, 10, 64)
		ok = err == nil
	}
	if !ok {
		return 0, false, status.Errorf(codes.InvalidArgument,
			"parent %q: want sessions/NUMBER, or sessions/- for all", parent)
	}
	return session, false, nil
}

// find returns the item of that name. kind and form are for the error.
func find[T interface{ GetName() string }](items []T, kind, form, name string) (T, error) {
	for _, item := range items {
		if item.GetName() == name {
			return item, nil
		}
	}
	var none T
	if name == "" {
		return none, status.Errorf(codes.InvalidArgument, "no name given: want %s", form)
	}
	return none, status.Errorf(codes.NotFound, "no %s named %q (names look like %s)", kind, name, form)
}
