// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"pno/dpu"
	"pno/dpu/link"
	"pno/offload"
)

func (s *Sim) startDPU() error {
	cfg := dpu.Config{
		Control: s.controlSocket(), Links: []link.Device{s.dpuEnd}, Addresses: s.cfg.Addresses,
		Shards: s.cfg.Shards, Log: s.cfg.Log.With("part", "dpud"),
	}
	if bus := s.bus(); bus != nil {
		cfg.WrapTransport = func(t offload.Transport, size uint64) offload.Transport { return bus.Wrap(t, size) }
	}
	var err error
	if s.dpu, err = dpu.New(cfg); err != nil {
		return err
	}
	return s.run("dpud", s.dpu.Serve, s.dpu.Ready())
}
