package main

import (
	"fmt"
	"os"

	"github.com/berth-dev/berth/hack/lab/build"
)

func main() {
	reg, tag := os.Args[1], os.Args[2]
	for _, p := range os.Args[3:] {
		user := "65532:65532"
		if p == "berth-agent" {
			user = "0:0"
		}
		img, err := build.Binary("/tmp/out/"+p, user)
		if err == nil {
			err = build.Push(img, reg+"/"+p+":"+tag)
		}
		fmt.Println(p, err)
	}
	if tag == "kernel" {
		img, err := build.Data([]build.File{{Path: "/boot/vmlinuz", From: "/tmp/lvx/vmlinuz", Mode: 0o644}, {Path: "/boot/initrd", From: "/tmp/lvx/initrd", Mode: 0o644}})
		if err == nil {
			err = build.Push(img, reg+"/tiny:kernel")
		}
		fmt.Println("kernel", err)
	}
}
