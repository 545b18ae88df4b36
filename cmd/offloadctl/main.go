// SPDX-License-Identifier: Apache-2.0

// Command offloadctl shows what the socket offload does; see package cli.
package main

import (
	"os"

	"pno/internal/cli"
)

func main() { os.Exit(cli.New().Main(os.Args[1:])) }
