// SPDX-License-Identifier: Apache-2.0

// Package cpufeat names the processor features that matter to pno: those that
// decide how fast a machine copies, hashes and signs. They are shown by
// offloadctl and recorded with each measurement, so that two figures are only
// compared when the machines are alike; nothing on a data path branches on
// them. Names are the kernel's, as in /proc/cpuinfo.
//
// The processor is asked once, before main; any goroutine may call Detect.
package cpufeat

import (
	"slices"
	"strings"
)

// Features is what is known about the processor this program runs on.
type Features struct {
	// Model is the processor's own name for itself; empty where it has none.
	Model string
	// Names lists the features that are present and that the operating system
	// lets programs use, sorted.
	Names []string
}

// Detect reports the features of this machine's processor. The caller owns the
// result.
func Detect() Features {
	f := Features{Model: strings.TrimSpace(model())}
	for name, present := range present() {
		if present {
			f.Names = append(f.Names, name)
		}
	}
	slices.Sort(f.Names)
	return f
}

// Has tells whether a feature is present, by its name in Names.
func (f Features) Has(name string) bool {
	return slices.Contains(f.Names, name)
}

// String is one line: the model, then the features.
func (f Features) String() string {
	m := f.Model
	if m == "" {
		m = "unnamed processor"
	}
	if len(f.Names) == 0 {
		return m
	}
	return m + " [" + strings.Join(f.Names, " ") + "]"
}
