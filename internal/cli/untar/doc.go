// Package untar writes trees of files from the tar streams that guests send. It takes them for hostile: whatever they say,
// nothing comes to stand outside of the one place that its caller names, and no file can run as another user.
package untar
