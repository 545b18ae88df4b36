// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestPlot(t *testing.T) {
	for _, tc := range []struct {
		name   string
		p      plot
		points int
	}{
		{"nothing", plot{title: "none"}, 0},
		{"one point", plot{series: []series{{"a", []point{{1, 1}}}}}, 1},
		{"two lines", plot{title: "a < b & c", logX: true, series: []series{
			{"a", []point{{64, 12}, {1024, 15}}}, {"b", []point{{64, 2}, {1024, 3}}}}}, 4},
		{"zeros", plot{series: []series{{"a", []point{{0, 0}, {1, 0}}}}}, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := tc.p.svg()
			for d := xml.NewDecoder(strings.NewReader(s)); ; {
				if _, err := d.Token(); errors.Is(err, io.EOF) {
					break
				} else if err != nil {
					t.Fatalf("%v\n%s", err, s)
				}
			}
			if n := strings.Count(s, "<circle"); n != tc.points || strings.Contains(s, "NaN") || strings.Contains(s, "Inf") || strings.Contains(s, "%!") {
				t.Errorf("%d points of %d\n%s", n, tc.points, s)
			}
		})
	}
}
