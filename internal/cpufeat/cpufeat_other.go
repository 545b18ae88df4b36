// SPDX-License-Identifier: Apache-2.0

//go:build !amd64 && !arm64

package cpufeat

func model() string { return "" }

func present() map[string]bool { return nil }
