// SPDX-License-Identifier: Apache-2.0

//go:build !cgo

package keystore

import "errors"

func openToken(rest string) (KEK, error) {
	if _, err := tokenSettings(rest); err != nil {
		return nil, err
	}
	return nil, errors.New("open KEK: built without cgo, which PKCS #11 needs; build with CGO_ENABLED=1")
}
