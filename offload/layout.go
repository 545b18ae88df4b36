// SPDX-License-Identifier: Apache-2.0

package offload

import (
	"errors"
	"fmt"
)

// ErrLayout is wrapped by every error about an unusable session layout.
var ErrLayout = errors.New("bad session layout")

// Layout is the geometry of a session memory, agreed at attach and constant
// for the session's life.
type Layout struct {
	Channels int    `json:"channels"`
	Shards   int    `json:"shards"`
	H2DSize  uint32 `json:"h2d_size"`
	D2HSize  uint32 `json:"d2h_size"`
	RxWindow uint32 `json:"rx_window"`
	TxWindow uint32 `json:"tx_window"`
}

// DefaultLayout fits a proxy worker: rings small enough to stay in the L2/L3
// cache, windows a quarter of a ring so that four bulk streams fill it.
func DefaultLayout(shards int) Layout {
	return Layout{
		Channels: MaxChannels, Shards: shards,
		H2DSize: 1 << 20, D2HSize: 1 << 20,
		RxWindow: 1 << 18, TxWindow: 1 << 18,
	}
}

// Check refuses a geometry that the two sides could not use safely.
func (l Layout) Check() error {
	ring := func(what string, n uint32) error {
		if n < MinRingSize || n > MaxRingSize || n&(n-1) != 0 {
			return fmt.Errorf("%s of %d bytes is not a power of two from %d to %d: %w",
				what, n, MinRingSize, MaxRingSize, ErrLayout)
		}
		return nil
	}
	if l.Channels < 1 || l.Channels > MaxChannels {
		return fmt.Errorf("%d channels, want 1 to %d: %w", l.Channels, MaxChannels, ErrLayout)
	}
	if l.Shards < 1 || l.Shards > MaxShards {
		return fmt.Errorf("%d shards, want 1 to %d: %w", l.Shards, MaxShards, ErrLayout)
	}
	if err := ring("host-to-DPU ring", l.H2DSize); err != nil {
		return err
	}
	if err := ring("DPU-to-host ring", l.D2HSize); err != nil {
		return err
	}
	if l.RxWindow < MaxPayload || l.RxWindow > l.D2HSize/2 {
		return fmt.Errorf("receive window %d, want %d to %d: %w", l.RxWindow, MaxPayload, l.D2HSize/2, ErrLayout)
	}
	if l.TxWindow < MaxPayload || l.TxWindow > MaxRingSize {
		return fmt.Errorf("transmit window %d, want %d to %d: %w", l.TxWindow, MaxPayload, MaxRingSize, ErrLayout)
	}
	return nil
}

// ChannelStride is the bytes from one channel to the next: control blocks,
// page aligned, then for each shard the two rings.
func (l Layout) ChannelStride() uint64 {
	return l.ctlSize() + uint64(l.Shards)*(uint64(l.H2DSize)+uint64(l.D2HSize))
}

func (l Layout) ctlSize() uint64 {
	return (uint64(l.Shards)*QPCtlSize + 4095) &^ 4095
}

// TotalSize is the size of the session memory.
func (l Layout) TotalSize() uint64 {
	return ChannelsOff + uint64(l.Channels)*l.ChannelStride()
}

// QP gives the offsets of one queue pair in the session memory.
type QP struct {
	HostLine, DevLine uint64
	H2D, D2H          uint64
}

// QP returns the offsets of the queue pair of a channel and a shard.
func (l Layout) QP(channel, shard int) QP {
	base := ChannelsOff + uint64(channel)*l.ChannelStride()
	ctl := base + uint64(shard)*QPCtlSize
	rings := base + l.ctlSize() + uint64(shard)*(uint64(l.H2DSize)+uint64(l.D2HSize))
	return QP{
		HostLine: ctl + HostLineOff, DevLine: ctl + DevLineOff,
		H2D: rings, D2H: rings + uint64(l.H2DSize),
	}
}
