package build

import (
	"embed"
	"os"
	"path/filepath"
)

//go:embed tiny cloud systemdhost
var guestFiles embed.FS

// defaultRelease of Debian is what guests are made of.
const defaultRelease = "bookworm"

// suite names it. Raising the number after it makes all guests anew.
const suite = defaultRelease + "/2"

// qemuUID owns the disk in a container disk, by KubeVirt's convention.
const qemuUID = 107

// Guest images, by the name of the variable that tells tests where they are.
const (
	ImageTiny   = "LAB_IMAGE_TINY"
	ImageKernel = "LAB_IMAGE_KERNEL"
	ImageCloud  = "LAB_IMAGE_CLOUD"
	// ImageHostile is the kernel's with a program that attacks its host, and with Berth's guest program.
	ImageHostile = "LAB_IMAGE_HOSTILE"
	// ImageTools is no guest's: it is for pods that talk to guests.
	ImageTools = "LAB_IMAGE_TOOLS"
	// ImageBusybox is for pods that need a shell.
	ImageBusybox = "LAB_IMAGE_BUSYBOX"
)

// embedded reads every file of a folder: its contents by name.
func embedded(folder string) (map[string][]byte, error) {
	all := map[string][]byte{}
	entries, err := guestFiles.ReadDir(folder)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if all[e.Name()], err = guestFiles.ReadFile(folder + "/" + e.Name()); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// unpack writes embedded files into a directory.
func unpack(files map[string][]byte, dir string) error {
	for name, raw := range files {
		if err := os.WriteFile(filepath.Join(dir, name), raw, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// Guests builds the test guests and returns their images' directories, by the
// variables that name them. hostile are the paths of the hostile one's programs.
func (c *Cache) Guests(hostile []string) (map[string]string, error) {
	all, err := c.tiny()
	if err != nil {
		return nil, err
	}
	if all[ImageHostile], err = c.Hostile(hostile); err != nil {
		return nil, err
	}
	all[ImageCloud], err = c.cloud()
	return all, err
}
