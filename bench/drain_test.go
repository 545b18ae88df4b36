// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// pages answers each request on each connection with one of the answers, in turn,
// and closes after the last one if there is no more of them.
func pages(t *testing.T, answers ...string) netip.AddrPort {
	t.Helper()
	lis, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lis.Close() })
	go func() {
		for {
			c, err := lis.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				request := make([]byte, len(ask))
				for _, a := range answers {
					if _, err := io.ReadFull(c, request); err != nil {
						return
					}
					_, _ = io.WriteString(c, a) // the client tells what is missing
				}
			}()
		}
	}()
	return lis.Addr().(*net.TCPAddr).AddrPort()
}

func TestDrain(t *testing.T) {
	const size = 100_000
	head := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", size)
	page := head + strings.Repeat("x", size)
	got, err := Drain(t.Context(), pages(t, page, page, page), 2, 0) // at least one page each
	if err != nil || got.Requests != 2 || got.Bytes != 2*size || got.Seconds <= 0 {
		t.Errorf("%+v, %v", got, err)
	}
	for name, tt := range map[string]struct {
		answers []string
		want    string
	}{
		"no answer":      {[]string{""}, `read the header of a page, "" so far: unexpected EOF`},
		"no length":      {[]string{"HTTP/1.1 200 OK\r\n\r\n"}, "does not say how long"},
		"no end":         {[]string{strings.Repeat("x", 5000)}, "does not end"},
		"half a page":    {[]string{page[:len(page)/2]}, "to go: unexpected EOF"},
		"then no more":   {[]string{page, ""}, "read the header of a page: unexpected EOF"},
		"then a refusal": {[]string{page, strings.Replace(page, "200 OK", "500 No", 1)}, "HTTP/1.1 500 No"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Drain(t.Context(), pages(t, tt.answers...), 1, time.Minute)
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "%!") {
				t.Errorf("%v, want %s", err, tt.want)
			}
		})
	}
}
