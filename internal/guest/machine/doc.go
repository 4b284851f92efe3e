// Package machine owns what a VirtualMachine is to be on one host: its spec with all that follows from it, so that
// nothing below has to read a spec. It never looks at the host; what only the host knows, such as paths, comes later.
package machine
