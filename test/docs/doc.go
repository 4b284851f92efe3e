// Package docs keeps the documentation complete: every reason, field and value
// has its line, and no link is dead. The tables of reasons and fields are
// written from their sources by go test ./test/docs -update.
package docs
