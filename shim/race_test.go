// SPDX-License-Identifier: Apache-2.0

//go:build race

package shim_test

const raceEnabled = true
