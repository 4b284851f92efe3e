package main

import (
	"os"
	"strings"
)

// noLines is text without an end of line that a terminal would obey: it clears the screen, changes the title, asks the
// terminal for its name and its cursor, switches to another screen, begins strings that never end, and is no UTF-8.
const noLines = "\x1b[2J\x1b]0;owned\x07\x1b[c\x1b[6n\x1b[?1049h\x1bP\x1b_\x9b31m\xff\xfe\x00\b\r\x1b]52;c;cm0gLXJm\x07"

// floodConsole writes so many KiB of it, and lets the terminal be as it was then.
func floodConsole(kib int) error {
	chunk := strings.Repeat(noLines, 1+(4<<10)/len(noLines))[:4<<10]
	for range kib / 4 {
		if _, err := os.Stdout.WriteString(chunk); err != nil {
			return err
		}
	}
	_, err := os.Stdout.WriteString("\x1b\\\x1bc\n")
	return err
}
