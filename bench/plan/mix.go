// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// maxBody is the largest body of a mix, in bytes.
const maxBody = 1 << 40

// Share is a part of the requests.
type Share struct {
	Bytes  int     `json:"bytes"`  // of the response body
	Weight float64 `json:"weight"` // to the other shares
}

// Mix is what the bodies look like.
type Mix []Share

// ParseMix reads SIZE[:WEIGHT],…: sizes in bytes, or with k, m or g for 1024 and
// its powers; weights need no particular sum.
func ParseMix(s string) (Mix, error) {
	var m Mix
	for part := range strings.SplitSeq(s, ",") {
		size, weight, weighted := strings.Cut(strings.TrimSpace(part), ":")
		sh := Share{Weight: 1}
		var err error
		if sh.Bytes, err = parseSize(size); err != nil {
			return nil, err
		}
		if weighted {
			sh.Weight, err = strconv.ParseFloat(strings.TrimSuffix(weight, "%"), 64)
			if err != nil || !(sh.Weight > 0) || math.IsInf(sh.Weight, 0) {
				return nil, fmt.Errorf("weight %q of %s: a number above 0 is wanted", weight, size)
			}
		}
		m = append(m, sh)
	}
	if sum := m.sum(); math.IsInf(sum, 0) {
		return nil, errors.New("the weights are too large")
	}
	return m, nil
}

func parseSize(s string) (int, error) {
	unit := 1
	if s != "" {
		if i := strings.IndexByte("kmg", s[len(s)-1]|0x20); i >= 0 {
			unit = 1 << (10 * (i + 1))
			s = s[:len(s)-1]
		}
	}
	n, err := strconv.ParseUint(s, 10, 41)
	if err != nil || n > maxBody/uint64(unit) {
		return 0, fmt.Errorf("size %q: bytes are wanted, as in 64, 16k or 1m", s)
	}
	return int(n) * unit, nil
}

func (m Mix) sum() (w float64) {
	for _, s := range m {
		w += s.Weight
	}
	return w
}

// Mean is the mean of f over the requests.
func (m Mix) Mean(f func(body int) float64) (mean float64) {
	sum := m.sum()
	for _, s := range m {
		mean += s.Weight / sum * f(s.Bytes)
	}
	return mean
}
