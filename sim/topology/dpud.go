// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"pno/dpu"
	"pno/internal/buildinfo"
	"pno/offload"
	"pno/sim/pcie"
)

func (s *Sim) startDPU() error {
	cfg := dpu.Config{
		Shards: s.cfg.Shards,
		Interfaces: []dpu.Interface{{
			Device: s.dpuEnd, Driver: "wire", Mode: "simulated", Addresses: s.cfg.Addresses,
		}},
		Loopback: true,
		Control:  s.controlSocket(),
		Version:  buildinfo.Version(),
		Log:      s.cfg.Log.With("part", "dpud"),
	}
	if !s.cfg.PCIe.Zero() {
		bus := pcie.NewBus(s.cfg.PCIe)
		cfg.WrapTransport = func(t offload.Transport, size uint64) offload.Transport { return bus.Wrap(t, size) }
	}
	var err error
	if s.dpu, err = dpu.New(cfg); err != nil {
		return err
	}
	return s.run("dpud", s.dpu.Serve, s.dpu.Ready())
}
