// Package brokendisk is a file system that fails on order, as one on a broken disk does.
package brokendisk
