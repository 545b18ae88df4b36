// SPDX-License-Identifier: Apache-2.0

// Package config loads the strict YAML files of hostd, dpud and the policy
// into Go structs.
//
// Strict means: an unknown or repeated key, a missing value, a value of
// another type, an alias, a tag or a second document is an error; every error
// names file, line and column and says what would be right; and all errors of
// a file are reported at once. Keys that the file leaves out keep the value
// that the struct had before, so that a caller fills in its defaults first.
//
// A struct is described by its `yaml:"key"` tags (a field without one is not
// read). A type that implements encoding.TextUnmarshaler takes the scalar's
// text. A struct with a Validate method is asked once all of it was decoded;
// it points at one of its keys with At. A struct with a SetLine method is told
// the line on which it begins.
//
// The package holds no state: any goroutine may call it.
package config
