// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"encoding/base64"
	"encoding/binary"
	"hash/fnv"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// key orders a resource among its kind. A page token holds the key of the last
// item sent, so that what comes and goes between two pages neither repeats nor
// hides anything else.
type key [3]uint64

func (k key) compare(o key) int { return slices.Compare(k[:], o[:]) }

// Page sizes: for resources that are few, and for those that may be many. The
// larger limit keeps an answer well below gRPC's 4 MiB.
const (
	defaultPage, maxPage           = 500, 1000
	defaultLargePage, maxLargePage = 1000, 5000
)

// request is what all List requests have in common.
type request interface {
	GetPageSize() int32
	GetPageToken() string
	GetFilter() string
}

// paginate sorts items and cuts out the page that req asks for. scope is what
// else selects (a parent): a token is good for the same selection only.
func paginate[T any](items []T, keyOf func(T) key, req request, scope string, def, most int) ([]T, string, error) {
	size := int(req.GetPageSize())
	switch {
	case size < 0:
		return nil, "", status.Errorf(codes.InvalidArgument, "page_size %d is negative", size)
	case size == 0:
		size = def
	}
	size = min(size, most)
	slices.SortFunc(items, func(a, b T) int { return keyOf(a).compare(keyOf(b)) })

	sum := selection(scope, req.GetFilter())
	if token := req.GetPageToken(); token != "" {
		after, ok := decodeToken(token, sum)
		if !ok {
			return nil, "", status.Error(codes.InvalidArgument,
				"page_token is not one that this parent and filter gave; start again without it")
		}
		i, found := slices.BinarySearchFunc(items, after, func(item T, k key) int { return keyOf(item).compare(k) })
		if found {
			i++
		}
		items = items[i:]
	}
	if len(items) <= size {
		return items, "", nil
	}
	items = items[:size]
	return items, encodeToken(keyOf(items[size-1]), sum), nil
}

func selection(scope, filter string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(scope + "\x00" + filter)) // never fails
	return h.Sum64()
}

func encodeToken(k key, sum uint64) string {
	var b []byte
	for _, n := range append(k[:], sum) {
		b = binary.AppendUvarint(b, n)
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

func decodeToken(token string, sum uint64) (key, bool) {
	b, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil {
		return key{}, false
	}
	var n [len(key{}) + 1]uint64
	for i := range n {
		v, used := binary.Uvarint(b)
		if used <= 0 {
			return key{}, false
		}
		n[i], b = v, b[used:]
	}
	return key(n[:len(key{})]), len(b) == 0 && n[len(n)-1] == sum
}
