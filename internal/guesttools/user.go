package guesttools

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// user is who a command runs as.
type user struct {
	name, home, shell string
	uid, gid          uint32
	groups            []uint32 // beside gid
}

// entries are the lines of a file like /etc/passwd that have so many fields at least. A guest without the file has none.
func entries(path string, fields int) (all [][]string) {
	data, _ := os.ReadFile(path)
	for line := range strings.Lines(string(data)) {
		if entry := strings.Split(strings.TrimSpace(line), ":"); len(entry) >= fields {
			all = append(all, entry)
		}
	}
	return all
}

// number finds an entry by its name or the number in its third field, and returns that number. One that no entry has
// stands for itself.
func number(all [][]string, name string) (n uint32, entry []string, err error) {
	i := slices.IndexFunc(all, func(e []string) bool { return e[0] == name })
	if i < 0 {
		i = slices.IndexFunc(all, func(e []string) bool { return e[2] == name })
	}
	if i >= 0 {
		entry, name = all[i], all[i][2]
	}
	id, err := strconv.ParseUint(name, 10, 31)
	return uint32(id), entry, err
}

// findUser reads USER or USER:GROUP, by the files below etc. Empty is root.
func findUser(etc, spec string) (u user, err error) {
	name, group, hasGroup := strings.Cut(spec, ":")
	if name == "" {
		name = "0"
	}
	uid, entry, err := number(entries(etc+"/passwd", 7), name)
	if err != nil {
		return u, fmt.Errorf("the guest has no user %q in /etc/passwd: name another by -u, or create it", name)
	}
	u = user{name: name, uid: uid, home: "/", shell: "/bin/sh"}
	if entry != nil {
		u.name, u.home = entry[0], entry[5]
		if entry[6] != "" {
			u.shell = entry[6]
		}
		if gid, err := strconv.ParseUint(entry[3], 10, 31); err == nil {
			u.gid = uint32(gid)
		}
	}
	groups := entries(etc+"/group", 4)
	if hasGroup {
		if u.gid, _, err = number(groups, group); err != nil {
			return u, fmt.Errorf("the guest has no group %q in /etc/group: name another by -u USER:GROUP, or create it", group)
		}
		return u, nil
	}
	for _, g := range groups {
		if id, err := strconv.ParseUint(g[2], 10, 31); err == nil && slices.Contains(strings.Split(g[3], ","), u.name) {
			u.groups = append(u.groups, uint32(id))
		}
	}
	return u, nil
}
