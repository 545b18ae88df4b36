// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"slices"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	adminv1 "pno/proto/pno/admin/v1"
)

func numbered(ids ...uint64) (out []*adminv1.Session) {
	for _, id := range ids {
		out = append(out, &adminv1.Session{Session: id, Name: sessionName(id)})
	}
	return out
}

func ids(in []*adminv1.Session) (out []uint64) {
	for _, s := range in {
		out = append(out, s.GetSession())
	}
	return out
}

func TestPaginate(t *testing.T) {
	page := func(items []*adminv1.Session, size int32, token string) ([]uint64, string) {
		t.Helper()
		got, next, err := paginate(items, sessionKey, &adminv1.ListSessionsRequest{PageSize: size, PageToken: token}, "", 3, 4)
		if err != nil {
			t.Fatal(err)
		}
		return ids(got), next
	}
	expect := func(got, want []uint64) {
		t.Helper()
		if !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}

	first, token := page(numbered(5, 3, 1, 4, 2), 2, "")
	expect(first, []uint64{1, 2})
	// 2, the last one sent, is gone, 1 too; 9 has come: nothing is repeated.
	second, token := page(numbered(9, 5, 4, 3), 2, token)
	expect(second, []uint64{3, 4})
	third, token := page(numbered(9, 5, 4, 3), 2, token)
	expect(third, []uint64{5, 9})
	if token != "" {
		t.Error("a token after the last page")
	}
	byDefault, _ := page(numbered(1, 2, 3, 4, 5), 0, "")
	expect(byDefault, []uint64{1, 2, 3})
	most, _ := page(numbered(1, 2, 3, 4, 5), 1000, "")
	expect(most, []uint64{1, 2, 3, 4})
	none, token := page(nil, 2, "")
	expect(none, nil)
	if token != "" {
		t.Error("a token for nothing")
	}
}

func TestPaginateRefuses(t *testing.T) {
	_, token, err := paginate(numbered(1, 2, 3), sessionKey, &adminv1.ListSessionsRequest{PageSize: 1, Filter: "a"}, "", 3, 4)
	if err != nil || token == "" {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		req  *adminv1.ListSessionsRequest
	}{
		{"negative size", &adminv1.ListSessionsRequest{PageSize: -1}},
		{"not base64", &adminv1.ListSessionsRequest{PageToken: "!"}},
		{"short", &adminv1.ListSessionsRequest{PageToken: "AA"}},
		{"long", &adminv1.ListSessionsRequest{Filter: "a", PageToken: token + "AAAA"}},
		{"token of another filter", &adminv1.ListSessionsRequest{Filter: "b", PageToken: token}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, _, err := paginate(numbered(1), sessionKey, tt.req, "", 3, 4); status.Code(err) != codes.InvalidArgument {
				t.Errorf("got %v", err)
			}
		})
	}
}

func FuzzPageToken(f *testing.F) {
	f.Add(encodeToken(key{1, 2, 3}, 4), uint64(4))
	f.Add("AA", uint64(0))
	f.Fuzz(func(t *testing.T, token string, sum uint64) {
		k, ok := decodeToken(token, sum)
		if !ok {
			return
		}
		if again, ok := decodeToken(encodeToken(k, sum), sum); !ok || again != k {
			t.Fatalf("%q reads as %v and then as %v", token, k, again)
		}
	})
}
