// Package condition is the arithmetic of conditions: transition times are kept,
// generations set, messages bounded. It knows no condition by name.
package condition
