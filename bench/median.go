// SPDX-License-Identifier: Apache-2.0

package bench

import "slices"

// medianOf is the median of one figure over some runs: of an even number the
// mean of the two in the middle.
func medianOf[R any](runs []R, get func(R) float64) float64 {
	v := sorted(runs, get)
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// spreadOf is (max − min) / median of one figure.
func spreadOf[R any](runs []R, get func(R) float64) float64 {
	v := sorted(runs, get)
	if mid := medianOf(runs, get); mid > 0 {
		return (v[len(v)-1] - v[0]) / mid
	}
	return 0
}

func sorted[R any](runs []R, get func(R) float64) []float64 {
	v := make([]float64, len(runs))
	for i, r := range runs {
		v[i] = get(r)
	}
	slices.Sort(v)
	return v
}
