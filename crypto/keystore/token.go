// SPDX-License-Identifier: Apache-2.0

package keystore

import (
	"fmt"
	"strings"
)

var tokenKeys = []string{"module", "token", "object", "pin-file"}

// tokenSettings reads what follows pkcs11: in a KEK's specification.
func tokenSettings(text string) (map[string]string, error) {
	set := map[string]string{}
	for part := range strings.SplitSeq(text, ";") {
		name, value, _ := strings.Cut(part, "=")
		if _, twice := set[name]; twice || value == "" {
			return nil, fmt.Errorf("open KEK: %q in pkcs11:…; write name=value once for each of %s", part, strings.Join(tokenKeys, ", "))
		}
		set[name] = value
	}
	for _, name := range tokenKeys {
		if set[name] == "" {
			return nil, fmt.Errorf("open KEK: pkcs11:… names no %s; write %[1]s=…", name)
		}
	}
	if len(set) != len(tokenKeys) {
		return nil, fmt.Errorf("open KEK: pkcs11:… takes %s and nothing else", strings.Join(tokenKeys, ", "))
	}
	return set, nil
}
