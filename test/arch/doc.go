// Package arch keeps the shape of the tree: who may reach whom, at any depth.
// depguard (.golangci.yml) checks what a file imports, with the reason of each
// rule; here is what comes along behind it, which no file shows.
//
// It never looks inside a package, and never at tests: they may use what they need.
package arch
