// Package docs keeps the documentation complete: every reason, field and value
// has its line, no link is dead, and what the README has its reader do first is
// accepted. The tables of reasons and fields are written from their sources by
// go test ./test/docs -update.
package docs
