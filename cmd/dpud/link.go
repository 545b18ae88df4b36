// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strings"

	"golang.org/x/sys/unix"

	"pno/dpu/afpacket"
	"pno/dpu/link"
	"pno/dpu/xsk"
	"pno/dpu/xsk/asavie"
)

// openLink opens the wire-side port. mode says how the kernel moves its
// packets, for the log and the admin API.
func openLink(s linkSettings) (dev link.Device, mode string, err error) {
	if _, err := net.InterfaceByName(s.Interface); err != nil {
		return nil, "", fmt.Errorf("link: no interface %s here; there are %s", s.Interface, interfaces())
	}
	switch s.Driver {
	case driverPacket:
		dev, err = afpacket.Open(afpacket.Options{Interface: s.Interface, Queues: s.Queues})
		mode = modeCopy
	case driverAsavie:
		dev, err = asavie.Open(asavie.Options{Interface: s.Interface, Queues: s.Queues})
		mode = modeCopy
	default:
		dev, mode, err = openXDP(s)
	}
	if err != nil {
		return nil, "", fmt.Errorf("link: %w%s", err, advice(err, s))
	}
	return dev, mode, nil
}

func openXDP(s linkSettings) (link.Device, string, error) {
	dev, err := xsk.Open(xsk.Options{
		Interface: s.Interface, Queues: s.Queues,
		Copy: s.Mode == modeCopy, Generic: s.Generic, Replace: s.Replace,
	})
	if err != nil {
		return nil, "", err
	}
	mode := modeZeroCopy
	for _, q := range dev.Info().Queues {
		if !q.ZeroCopy {
			mode = modeCopy
		}
	}
	if s.Mode == modeZeroCopy && mode != modeZeroCopy {
		return nil, "", errors.Join(
			fmt.Errorf("the driver of %s cannot do zero-copy: use mode %s", s.Interface, modeAuto), dev.Close())
	}
	return dev, mode, nil
}

// advice says what to do about an error that an operator can remove.
func advice(err error, s linkSettings) string {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES), errors.Is(err, fs.ErrPermission):
		need := "CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF"
		if s.Driver == driverPacket {
			need = "CAP_NET_ADMIN and CAP_NET_RAW"
		}
		return fmt.Sprintf(" (dpud needs %s: run it as root, or from its systemd unit)", need)
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EAFNOSUPPORT):
		return fmt.Sprintf(" (this kernel or driver has no %s for it: try driver %s)", s.Driver, driverPacket)
	}
	return ""
}

func interfaces() string {
	all, err := net.Interfaces()
	if err != nil || len(all) == 0 {
		return "none"
	}
	names := make([]string, len(all))
	for i, one := range all {
		names[i] = one.Name
	}
	return strings.Join(names, ", ")
}
