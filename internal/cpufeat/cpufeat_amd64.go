// SPDX-License-Identifier: Apache-2.0

package cpufeat

import (
	"strings"

	"github.com/intel-go/cpuid"
)

func model() string {
	// The library hands over all 48 bytes of the register dump.
	return strings.TrimRight(cpuid.ProcessorBrandString, "\x00")
}

// present asks intel-go/cpuid, which knows no feature newer than AVX512VBMI2:
// vaes, gfni and vpclmulqdq cannot be told through it.
func present() map[string]bool {
	// CPUID says what the silicon has; the vector registers are usable only if
	// the kernel saves them, which the library keeps apart.
	avx, avx512 := cpuid.EnabledAVX, cpuid.EnabledAVX512
	return map[string]bool{
		"aes":        cpuid.HasFeature(cpuid.AES),
		"pclmulqdq":  cpuid.HasFeature(cpuid.PCLMULQDQ),
		"sse4_2":     cpuid.HasFeature(cpuid.SSE4_2),
		"avx2":       avx && cpuid.HasExtendedFeature(cpuid.AVX2),
		"bmi2":       cpuid.HasExtendedFeature(cpuid.BMI2),
		"adx":        cpuid.HasExtendedFeature(cpuid.ADX),
		"erms":       cpuid.HasExtendedFeature(cpuid.ERMS),
		"clflushopt": cpuid.HasExtendedFeature(cpuid.CLFLUSHOPT),
		"clwb":       cpuid.HasExtendedFeature(cpuid.CLWB),
		"sha_ni":     cpuid.HasExtendedFeature(cpuid.SHA),
		"avx512f":    avx512 && cpuid.HasExtendedFeature(cpuid.AVX512F),
		"avx512bw":   avx512 && cpuid.HasExtendedFeature(cpuid.AVX512BW),
		"avx512ifma": avx512 && cpuid.HasExtendedFeature(cpuid.AVX512IFMA),
	}
}
