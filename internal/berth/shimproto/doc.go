// Package shimproto is the protocol between the agent and a berth's shim, over a socketpair that the shim makes, keeps, and
// never names. Its agent's end stands at a fixed descriptor number, from which the agent takes a copy by pidfd_getfd; an
// agent that starts anew takes another one. So nothing listens and nothing has a path that somebody else in the pod could
// dial or replace.
//
// Messages are state, never events: each may be repeated, and one that an ended agent has swallowed is sent again on Hello.
// The agent passes descriptors to the shim; the shim never passes any, and the agent takes none. The agent trusts nothing
// that it reads here.
//
// It imports nothing but the standard library and x/sys: the shim stays tiny.
package shimproto
