// SPDX-License-Identifier: Apache-2.0

package peer

import "testing"

func TestClientCountsAnswers(t *testing.T) {
	const answer = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
	c := new(client)
	feed := func(b string, want int) {
		t.Helper()
		n, err := c.take([]byte(b))
		if err != nil || n != want {
			t.Fatalf("take(%q) = %d, %v; want %d", b, n, err, want)
		}
	}
	feed(answer[:20], 0)
	feed(answer[20:], 1)
	feed(answer, 1)
	feed(answer[:len(answer)-1], 0)
	feed("o", 1)
	if _, err := c.take([]byte(answer + "x")); err == nil {
		t.Error("an answer that is too long was taken")
	}
}

func TestBackendCountsRequests(t *testing.T) {
	const request = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
	s := new(backend)
	feed := func(b string, want int) {
		t.Helper()
		if n, err := s.take([]byte(b)); err != nil || n != want {
			t.Fatalf("take(%q) = %d, %v; want %d", b, n, err, want)
		}
	}
	feed(request, 1)
	for cut := 1; cut < len(request); cut++ {
		feed(request[:cut], 0)
		feed(request[cut:], 1)
	}
	feed("\r\n\r", 0)
	feed("\r\n\r\n", 1)
	if _, err := s.take([]byte(request + "x")); err == nil {
		t.Error("a second request that did not wait for its answer was taken")
	}
}

func TestAnswerLength(t *testing.T) {
	for _, tc := range []struct {
		name, head string
		want       uint32
		bad        bool
	}{
		{"whole", "HTTP/1.1 200 OK\r\nContent-Length: 64\r\n\r\n", 39 + 64, false},
		{"cut", "HTTP/1.1 200 OK\r\nContent-Le", 0, false},
		{"no length", "HTTP/1.1 200 OK\r\nServer: x\r\n\r\n", 0, true},
		{"no number", "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", 0, true},
		{"too large", "HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n", 0, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := answerLength([]byte(tc.head))
			if (err != nil) != tc.bad || got != tc.want {
				t.Errorf("%d, %v; want %d", got, err, tc.want)
			}
		})
	}
}
