// Package client is what runs beside the shim in its container, by kubectl exec or as a probe: it has a command run in the
// guest, or an action carried out. It passes its standard input, output and error to the shim and then only waits, so that
// many clients cost little. It trusts nobody but the container's PID 1.
package client
