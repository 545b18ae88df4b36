// SPDX-License-Identifier: Apache-2.0

// Package results holds what make bench recorded last.
package results

import _ "embed"

// JSON is a report of pno bench table.
//
//go:embed results.json
var JSON []byte
