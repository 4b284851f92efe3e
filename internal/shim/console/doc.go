// Package console joins the guest's serial console, a socket of QEMU's, with the
// container's stdin and stdout, so that kubectl logs and attach are that console.
//
// It always reads what the guest writes: whoever reads the container's output may be slow or stuck, and the guest must not
// wait for them. What does not fit is dropped, oldest first, with a mark in its place. It never changes a byte and
// interprets none.
package console
