// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"fmt"
	"net"

	"pno/internal/unixsock"
)

// socketMode lets the owner and the group of the daemon in, nobody else: the
// file's permissions are the API's access control.
const socketMode = 0o660

// ErrInUse is wrapped when another process serves on the socket.
var ErrInUse = unixsock.ErrInUse

// listenUnix opens the socket at path.
func listenUnix(ctx context.Context, path string) (net.Listener, error) {
	l, err := unixsock.Listen(ctx, "unix", path, socketMode)
	if err != nil {
		return nil, fmt.Errorf("admin socket %w", err)
	}
	return l, nil
}
