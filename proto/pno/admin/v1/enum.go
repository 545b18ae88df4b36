// SPDX-License-Identifier: Apache-2.0

package adminv1

import (
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// EnumName is an enum value as people and filters write it: SESSION_STATE_UP of
// SessionState is up.
func EnumName(v protoreflect.EnumValueDescriptor) string {
	var prefix strings.Builder
	for i, r := range string(v.Parent().Name()) {
		if i > 0 && r >= 'A' && r <= 'Z' {
			prefix.WriteByte('_')
		}
		prefix.WriteRune(r)
	}
	prefix.WriteByte('_')
	return strings.ToLower(strings.TrimPrefix(string(v.Name()), strings.ToUpper(prefix.String())))
}
