// SPDX-License-Identifier: Apache-2.0

package pcie

import (
	"fmt"
	"strings"
	"time"
)

// Profile is a set of parameters. Each number of the profiles below says where
// it comes from; "assumption" means that no measurement of this operation on
// this card was found, so a result that depends on it needs real hardware.
type Profile struct {
	Name string

	ReadLatency      time.Duration // small DMA read, from post to completion
	WriteLatency     time.Duration // small DMA write, from post to visible at the host
	ReadBandwidth    uint64        // host to DPU, payload bytes a second; 0 is infinite
	WriteBandwidth   uint64        // DPU to host
	Outstanding      int           // operations in flight for each shard and session; 0 is unlimited
	DoorbellLatency  time.Duration // the host's MMIO write until the DPU can act on it
	InterruptLatency time.Duration // the DPU's request until the host's interrupt controller has it
}

// Zero tells whether the profile costs nothing, so that no model is needed.
func (p Profile) Zero() bool {
	return p == Profile{Name: p.Name}
}

const (
	// Lanes × transfer rate × 128b/130b coding, in bytes a second: 16 lanes at
	// 16 GT/s and at 32 GT/s (PCI Express base specification 4.0 and 5.0).
	gen4x16 = 16 * 16_000_000_000 / 130 * 128 / 8
	gen5x16 = 2 * gen4x16
	// A transaction layer packet has 24 bytes around its payload (framing token
	// with sequence number 4, header with a 64-bit address 16, LCRC 4; same
	// specification). 256 bytes of payload is a usual setting of servers:
	// assumption.
	tlpPayload, tlpWhole = 256, 256 + 24
)

// Profiles, in the order in which they are listed to the user.
//
// Latencies. A bare PCIe 3 device reads 64 bytes of host memory in about half
// a microsecond (Neugebauer et al., "Understanding PCIe performance for end
// host networking", SIGCOMM 2018, the order of magnitude of its figures). A
// BlueField adds the DMA engine's job queue, the SoC's internal switch and the
// completion that its Arm core polls. That BlueField sums up to 1 to 3 µs is an
// assumption, and so is that BlueField-3 is faster by a quarter.
//
// Interrupt. The message itself crosses in 0.1 to 0.2 µs (ball-park figures of
// driver developers, community.osr.com discussion 200587); asking for it from
// the Arm side costs about a write: assumption. The host's handler and
// scheduler are not in it: the simulator's eventfd really does that work.
var Profiles = []Profile{
	{Name: "zero"},
	{
		Name:             "bluefield2",
		ReadLatency:      2000 * time.Nanosecond,          // assumption, see above
		WriteLatency:     1200 * time.Nanosecond,          // assumption: no completion from the host to wait for
		ReadBandwidth:    gen4x16 / tlpWhole * tlpPayload, // PCIe Gen4 x16 (NVIDIA's product brief); that the DMA engine keeps up: assumption
		WriteBandwidth:   gen4x16 / tlpWhole * tlpPayload, // same
		Outstanding:      64,                              // assumption: a usual depth of a DMA job queue
		DoorbellLatency:  800 * time.Nanosecond,           // assumption: one way, plus the Arm core's poll
		InterruptLatency: 1200 * time.Nanosecond,          // assumption: as a write
	},
	{
		Name:             "bluefield3",
		ReadLatency:      1500 * time.Nanosecond,          // assumption, see above
		WriteLatency:     900 * time.Nanosecond,           // assumption
		ReadBandwidth:    gen5x16 / tlpWhole * tlpPayload, // PCIe Gen5.0 x16 (NVIDIA BSP, Supported Platforms: B3220); that the DMA engine keeps up: assumption
		WriteBandwidth:   gen5x16 / tlpWhole * tlpPayload, // same
		Outstanding:      64,                              // assumption
		DoorbellLatency:  600 * time.Nanosecond,           // assumption
		InterruptLatency: 900 * time.Nanosecond,           // assumption: as a write
	},
}

// Names lists the profiles for a usage text.
func Names() string {
	names := make([]string, len(Profiles))
	for i, p := range Profiles {
		names[i] = p.Name
	}
	return strings.Join(names, ", ")
}

// ByName finds a profile.
func ByName(name string) (Profile, error) {
	for _, p := range Profiles {
		if p.Name == name {
			return p, nil
		}
	}
	return Profile{}, fmt.Errorf("unknown PCIe profile %q: use one of %s", name, Names())
}
