// SPDX-License-Identifier: Apache-2.0

package xsk

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// ethtoolChannels is struct ethtool_channels of linux/ethtool.h.
type ethtoolChannels struct {
	cmd                                    uint32
	maxRx, maxTx, maxOther, maxCombined    uint32
	rxCount, txCount, otherCount, combined uint32
}

// channelsRequest is struct ifreq with its data pointer in use.
type channelsRequest struct {
	name [unix.IFNAMSIZ]byte
	data *ethtoolChannels
	_    [16]byte
}

// receiveQueues asks how many receive queues an interface uses now. One that
// cannot say has one.
func receiveQueues(ifname string) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	ch := ethtoolChannels{cmd: unix.ETHTOOL_GCHANNELS}
	req := channelsRequest{data: &ch}
	copy(req.name[:unix.IFNAMSIZ-1], ifname)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
	switch errno {
	case 0:
		return max(1, int(ch.rxCount+ch.combined)), nil
	case unix.EOPNOTSUPP:
		return 1, nil
	}
	return 0, errno
}
