// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	adminv1 "pno/proto/pno/admin/v1"
)

// allPages collects every page of a List call; each has its own deadline.
func allPages[T any](ctx context.Context, timeout time.Duration, page func(ctx context.Context, token string) ([]T, string, error)) ([]T, error) {
	var all []T
	for token := ""; ; {
		items, next, err := onePage(ctx, timeout, token, page)
		if err != nil {
			return nil, err
		}
		all = append(all, items...)
		if next == "" {
			return all, nil
		}
		token = next
	}
}

func onePage[T any](ctx context.Context, timeout time.Duration, token string, page func(context.Context, string) ([]T, string, error)) ([]T, string, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return page(ctx, token)
}

// trees makes trees of messages; none is an empty list, not null.
func trees[T proto.Message](items []T) []object {
	out := make([]object, len(items))
	for i, item := range items {
		out[i] = treeOf(item.ProtoReflect())
	}
	return out
}

// enumText is an enum value as people write it, or its number if this build
// does not know it.
func enumText(e protoreflect.Enum) string {
	if v := e.Descriptor().Values().ByNumber(e.Number()); v != nil {
		return adminv1.EnumName(v)
	}
	return number(uint64(e.Number()))
}
