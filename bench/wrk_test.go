// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"testing"
	"time"
)

func TestReadWrk(t *testing.T) {
	const head = "Running 2s test @ http://198.18.1.2:80/\n  1 threads and 64 connections\n"
	for _, tc := range []struct {
		name, text string
		want       loadResult
		bad        bool
	}{
		{"all well", head + "  Latency Distribution\n     50%  790.00us\n     75%    1.10ms\n     90%    1.52ms\n     99%    2.71ms\n" +
			"  16482 requests in 2.01s, 3.44MB read\nRequests/sec:   8194.11\n",
			loadResult{requests: 16482, elapsed: 2010 * time.Millisecond, p50: 790 * time.Microsecond, p99: 2710 * time.Microsecond}, false},
		{"failures", head + "  10 requests in 1.00s, 3.44MB read\n  Socket errors: connect 1, read 2, write 0, timeout 3\n  Non-2xx or 3xx responses: 4\n",
			loadResult{requests: 10, elapsed: time.Second, failed: 10}, false},
		{"nothing", "unable to connect\n", loadResult{}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := readWrk(tc.text)
			if tc.bad != (err != nil) {
				t.Fatalf("error %v", err)
			}
			if got != tc.want {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
		})
	}
}
