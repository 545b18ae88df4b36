// SPDX-License-Identifier: Apache-2.0

// Package cli is offloadctl: commands that ask dpud and hostd through the admin
// API and print what they answer, one command a file.
//
// Main runs one command line. Its output, environment and clock are fields of
// App, so that tests hold the text by golden files. What is printed as JSON and
// YAML is an interface: the field names are those of the .proto files, and
// change only with them. An App serves one command line, in one goroutine.
package cli
