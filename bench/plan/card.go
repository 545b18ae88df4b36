// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"errors"
	"fmt"
	"strings"

	"pno/sim/pcie"
)

// Card is a DPU.
type Card struct {
	Name     string
	Cores    int
	Reserved int          // of them, for the card's own system
	Speed    float64      // of a core, to the one that costs were measured on
	Port     float64      // bits a second, each way; 0: no limit
	PCIe     pcie.Profile // its limits; the zero profile has none

	coresSource, speedSource, portSource string
}

// Cards that are known.
var Cards = []Card{
	{
		Name: "bluefield2", Cores: 8, Reserved: 1, Speed: 0.4, Port: 200e9, PCIe: profile("bluefield2"),
		coresSource: "eight Armv8 A72 cores: NVIDIA, BlueField-2 Ethernet DPU user guide, introduction",
		speedSource: "assumption: an A72 at 2.5 GHz does 0.4 of a server's x86 core; measure on the card",
		portSource:  "up to 200 Gb/s: NVIDIA, BlueField-2 Ethernet DPU user guide, introduction",
	},
	{
		Name: "bluefield3", Cores: 16, Reserved: 1, Speed: 0.7, Port: 400e9, PCIe: profile("bluefield3"),
		coresSource: "16 Arm Cortex-A78 cores: NVIDIA, DOCA documentation, hardware architecture",
		speedSource: "assumption: an A78 does 0.7 of a server's x86 core; measure on the card",
		portSource:  "400GbE, B3240: NVIDIA, DOCA installation guide, supported platforms",
	},
}

func profile(name string) pcie.Profile {
	p, err := pcie.ByName(name)
	if err != nil {
		panic(err) // a card's profile is in the same tree
	}
	return p
}

// CardNames lists the cards for a usage text.
func CardNames() string {
	names := make([]string, len(Cards))
	for i, c := range Cards {
		names[i] = c.Name
	}
	return strings.Join(names, ", ")
}

// CardByName finds a card.
func CardByName(name string) (Card, error) {
	for _, c := range Cards {
		if c.Name == name {
			return c, nil
		}
	}
	return Card{}, fmt.Errorf("unknown card %q: use one of %s", name, CardNames())
}

// WithCores is the card with other numbers of its cores; 0 leaves one as it is.
func (c Card) WithCores(cores int, speed float64) Card {
	if cores != 0 {
		c.Cores, c.coresSource = cores, "given"
	}
	if speed != 0 {
		c.Speed, c.speedSource = speed, "given"
	}
	return c
}

// shards is how many cores serve connections.
func (c Card) shards() int { return c.Cores - c.Reserved }

func (c Card) check() error {
	if c.shards() < 1 || c.Speed <= 0 || c.Port < 0 {
		return errors.New("the card needs a core beyond those reserved, and a speed above 0")
	}
	return nil
}

func (c Card) constants() []Constant {
	link := "sim/pcie/profile.go, which has the source; that the DMA engine keeps up is an assumption"
	return []Constant{
		{"DPU cores", float64(c.Cores), "", c.coresSource},
		{"of these, not for connections", float64(c.Reserved), "", "assumption: the card's system and dpud's control link"},
		{"speed of a DPU core", c.Speed, "of a measured one", c.speedSource},
		{"port", c.Port / 1e9, "Gbit/s each way", c.portSource},
		{"PCIe, host to DPU", float64(c.PCIe.ReadBandwidth) / 1e9, "GB/s", link},
		{"PCIe, DPU to host", float64(c.PCIe.WriteBandwidth) / 1e9, "GB/s", link},
		{"DMA operations under way", float64(c.PCIe.Outstanding), "a shard", link},
		{"DMA read latency", float64(c.PCIe.ReadLatency.Nanoseconds()) / 1e3, "µs", link},
		{"DMA operations a request", opsPerRequest, "", "without any batching; under load it is less"},
	}
}
