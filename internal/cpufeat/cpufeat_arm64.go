// SPDX-License-Identifier: Apache-2.0

package cpufeat

import (
	"os"
	"strings"

	"golang.org/x/sys/cpu"
)

// midrPath holds the main ID register: an Arm processor has no name in words.
const midrPath = "/sys/devices/system/cpu/cpu0/regs/identification/midr_el1"

func model() string {
	b, err := os.ReadFile(midrPath)
	if err != nil {
		return ""
	}
	return "midr " + strings.TrimSpace(string(b))
}

func present() map[string]bool {
	a := cpu.ARM64
	return map[string]bool{
		"aes":     a.HasAES,
		"pmull":   a.HasPMULL,
		"sha1":    a.HasSHA1,
		"sha2":    a.HasSHA2,
		"sha512":  a.HasSHA512,
		"crc32":   a.HasCRC32,
		"atomics": a.HasATOMICS,
		"lrcpc":   a.HasLRCPC,
		"asimd":   a.HasASIMD,
		"sve":     a.HasSVE,
		"sve2":    a.HasSVE2,
	}
}
