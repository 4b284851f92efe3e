// Package host writes labels of nodes from what agents report of their hosts, and
// deletes hosts whose node is gone. Agents themselves may write no node.
package host
