// SPDX-License-Identifier: Apache-2.0

package main

import (
	"log/slog"
	"slices"
	"testing"

	"pno/internal/config"
	"pno/sim/wire"
)

// The number of shards is the file's, that of its cores, or that of the queues.
func TestNumberOfShards(t *testing.T) {
	near, far, err := wire.Pair(wire.Config{Queues: [2]int{3, 1}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = near.Close(), far.Close() }()
	for _, c := range []struct {
		in     string
		shards int
		cores  []int
	}{
		{"", 3, nil},
		{"shards: 2\n", 2, nil},
		{"cores: [4, 1]\n", 2, []int{4, 1}},
		{"shards: 2\ncores: [0, 1]\n", 2, []int{0, 1}},
	} {
		set := defaultSettings()
		if err := config.Parse("c", []byte(minimal+c.in), &set); err != nil {
			t.Fatalf("%q: %v", c.in, err)
		}
		got := dpuConfig(set, near, "", slog.Default())
		if got.Shards != c.shards || !slices.Equal(got.Cores, c.cores) {
			t.Errorf("%q: %d shards on cores %v, want %d on %v", c.in, got.Shards, got.Cores, c.shards, c.cores)
		}
	}
}
