// SPDX-License-Identifier: Apache-2.0

package afpacket

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"pno/internal/ethtool"
)

// flagLRO is ETH_FLAG_LRO of linux/ethtool.h.
const flagLRO = 1 << 15

// merging remembers the interface's receive offloads that join segments.
type merging struct {
	conn    *ethtool.Conn
	ifname  string
	restore []setting
}

type setting struct{ cmd, value uint32 }

// off turns merging off. What the interface does not know needs no turning
// off.
func (m *merging) off() error {
	for _, c := range []struct{ get, set, mask uint32 }{
		{unix.ETHTOOL_GGRO, unix.ETHTOOL_SGRO, 1},
		{unix.ETHTOOL_GFLAGS, unix.ETHTOOL_SFLAGS, flagLRO},
	} {
		old, err := m.conn.Get(m.ifname, c.get)
		if errors.Is(err, unix.EOPNOTSUPP) || err == nil && old&c.mask == 0 {
			continue
		}
		if err == nil {
			err = m.conn.Set(m.ifname, c.set, old&^c.mask)
		}
		if err != nil {
			return fmt.Errorf("turn off merging of received segments (needs CAP_NET_ADMIN): %w", err)
		}
		m.restore = append(m.restore, setting{c.set, old})
	}
	return nil
}

func (m *merging) close() error {
	var errs []error
	for _, s := range m.restore {
		// An interface that is gone takes its settings with it.
		if err := m.conn.Set(m.ifname, s.cmd, s.value); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("restore merging of received segments: %w", err))
		}
	}
	return errors.Join(append(errs, m.conn.Close())...)
}
