// Package virtualmachine owns the life of the guests on this node: for each it joins what the API wants, what the host
// has and what internal/guest/plan decides, and reports the result. It never touches the host itself, but by the
// interfaces in host.go, and knows no other room of the agent.
package virtualmachine
