// Package sandbox runs parts of Berth's own binary confined: whoever reads hostile bytes is the user of the guest whose
// bytes they are, without capabilities, sees no file system and has the descriptors that it was given.
//
// It is the one owner of os/exec on a node. It knows nothing of what it runs, and runs no other program.
package sandbox
