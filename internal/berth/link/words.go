package link

import "strings"

// Words are an Exit's last words, which the shim leaves to kubelet as the container's termination message.
func (e Exit) Words() string {
	if e.Reason == "" {
		return e.Message
	}
	return strings.TrimSuffix(e.Reason+": "+e.Message, ": ")
}

// ParseWords takes last words apart again. What it calls the reason is one only if the reader knows it.
func ParseWords(words string) (reason, message string) {
	reason, message, _ = strings.Cut(words, ": ")
	return reason, message
}
