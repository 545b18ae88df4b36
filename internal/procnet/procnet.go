// SPDX-License-Identifier: Apache-2.0

// Package procnet lists the kernel's TCP and UDP sockets that a process holds,
// from /proc, in whatever network namespace it lives. It keeps nothing, and any
// goroutine may call.
package procnet

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Socket is one of a process's.
type Socket struct {
	Inode       uint64
	UDP         bool
	Listening   bool // TCP
	Local, Peer netip.AddrPort
}

// Sockets lists those that are bound or connected; others are not to be seen.
func Sockets(pid int) ([]Socket, error) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	mine, err := inodes(filepath.Join(dir, "fd"))
	if err != nil || len(mine) == 0 {
		return nil, err
	}
	var out []Socket
	for _, name := range []string{"tcp", "tcp6", "udp", "udp6"} {
		f, err := os.Open(filepath.Join(dir, "net", name))
		if err != nil {
			continue // no IPv6, say
		}
		list, err := parse(f, strings.HasPrefix(name, "udp"), mine)
		_ = f.Close()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name(), err)
		}
		out = append(out, list...)
	}
	return out, nil
}

// inodes are those of the sockets among the descriptors.
func inodes(dir string) (map[uint64]bool, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = d.Close() }()
	out := map[uint64]bool{}
	for {
		names, err := d.Readdirnames(1024)
		for _, n := range names {
			link, err := os.Readlink(filepath.Join(dir, n))
			if err != nil {
				continue // closed meanwhile
			}
			if rest, ok := strings.CutPrefix(link, "socket:["); ok {
				if i, err := strconv.ParseUint(strings.TrimSuffix(rest, "]"), 10, 64); err == nil {
					out[i] = true
				}
			}
		}
		if err == io.EOF {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// parse reads a table of /proc/net, and picks the sockets of some inodes:
//
//	sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode …
func parse(r io.Reader, udp bool, mine map[uint64]bool) ([]Socket, error) {
	const listen = "0A"
	var out []Socket
	lines := bufio.NewScanner(r)
	for first := true; lines.Scan(); first = false {
		f := strings.Fields(lines.Text())
		if first || len(f) < 10 {
			continue
		}
		inode, err := strconv.ParseUint(f[9], 10, 64)
		if err != nil || !mine[inode] {
			continue
		}
		local, lerr := address(f[1])
		peer, perr := address(f[2])
		if lerr != nil || perr != nil {
			continue
		}
		out = append(out, Socket{Inode: inode, UDP: udp, Listening: !udp && f[3] == listen, Local: local, Peer: peer})
	}
	return out, lines.Err()
}

// address reads 0100007F:0050: the address in words of this machine's order,
// the port as a number.
func address(s string) (netip.AddrPort, error) {
	ip, port, _ := strings.Cut(s, ":")
	b, err := hex.DecodeString(ip)
	if err != nil || len(b) != 4 && len(b) != 16 {
		return netip.AddrPort{}, fmt.Errorf("%q is not an address", s)
	}
	for i := 0; i < len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	p, err := strconv.ParseUint(port, 16, 16)
	a, _ := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(a.Unmap(), uint16(p)), err
}
