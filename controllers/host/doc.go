// Package host turns what agents say of their hosts into labels of nodes, and
// clears away hosts whose node is gone. Agents themselves may write no node.
package host
