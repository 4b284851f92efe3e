package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// idle has this program do nothing, whatever its arguments are.
const idle = "TOOLS_IDLE"

// pretend runs so many programs of a name, which do nothing, with command lines of 64 KiB that begin with args. Every
// second one lies in a directory that is deeper than the longest path, so that the kernel has no name to tell of it.
func pretend(count, name string, args []string) error {
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	if err := os.Chdir(os.TempDir()); err != nil {
		return err
	}
	if err := copyProgram(name); err != nil {
		return err
	}
	argv := append(append([]string{"./" + name}, args...), strings.Repeat("x", 1<<16))
	if err := start(n/2, argv); err != nil {
		return err
	}
	if err := goBelow(name); err != nil {
		return err
	}
	if err := start(n-n/2, argv); err != nil {
		return err
	}
	fmt.Printf("tools: %d are called %s\n", n, name)
	awaitEnd()
	return nil
}

// copyProgram makes a copy of this program here.
func copyProgram(name string) error {
	from, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o700)
	if err != nil {
		return err
	}
	if _, err := io.Copy(to, from); err != nil {
		return err
	}
	return to.Close() // what somebody writes to cannot be run
}

// goBelow goes to a directory whose path has more than the 4096 bytes that Linux tells, and takes a file along.
func goBelow(name string) error {
	const depth = 25
	dir := strings.Repeat("d", 200)
	for range depth {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
		if err := os.Link(name, dir+"/"+name); err != nil {
			return err
		}
		if err := os.Chdir(dir); err != nil {
			return err
		}
	}
	return nil
}

// start runs so many of a program that lies here.
func start(count int, argv []string) error {
	attributes := &os.ProcAttr{Env: []string{idle + "=1", "GOMAXPROCS=1"}, Files: []*os.File{nil, nil, os.Stderr}}
	for range count {
		p, err := os.StartProcess(argv[0], argv, attributes)
		if err != nil {
			return err
		}
		if err := p.Release(); err != nil {
			return err
		}
	}
	return nil
}
