// SPDX-License-Identifier: Apache-2.0

//go:build !amd64

package asavie

import (
	"errors"
	"fmt"
	"runtime"

	"pno/dpu/link"
)

// Open refuses: the library's rings are not safe on this processor.
func Open(o Options) (link.Device, error) {
	return nil, fmt.Errorf("open %s with asavie/xdp: rings without fences are unsafe on %s, use the xsk driver: %w",
		o.Interface, runtime.GOARCH, errors.ErrUnsupported)
}
