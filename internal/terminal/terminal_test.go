// SPDX-License-Identifier: Apache-2.0

package terminal

import "testing"

func TestPrintable(t *testing.T) {
	for s, want := range map[string]string{
		"":                        "",
		"nginx: worker process":   "nginx: worker process",
		"Zürich, 東京":              "Zürich, 東京",
		"a\x1b[2Jb":               "a?[2Jb",
		"two\nlines\tand\rmore":   "two?lines?and?more",
		"\u009b31m":               "?31m", // CSI in one character
		"bad\xffbyte":             "bad\ufffdbyte",
		"left\u202eto\u200bright": "left?to?right",
	} {
		if got := Printable(s); got != want {
			t.Errorf("%q becomes %q, want %q", s, got, want)
		}
	}
}
