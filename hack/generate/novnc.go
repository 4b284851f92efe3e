package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// noVNC is vendored by exact version: the digest is npm's own of the package (dist.integrity), the sum is of its files.
const (
	novncPackage   = "https://registry.npmjs.org/@novnc/novnc/-/novnc-1.7.0.tgz"
	novncIntegrity = "sha512-ucEJOx4T2avIRCleodk7YobZj5O2Ga2AeLfQ69A/yjG9HHba2+PDgwSkN3FttrmG+70ZGx21sElNFouK13RzyA=="
	novncSum       = "6fccdc59a78800adf48e6c8b31a43b4c47052aa797918ac0efbe7107a6bf7249"
	novncDir       = "third_party/novnc/package"
	novncMaxBytes  = 4 << 20
)

// novnc writes noVNC's package whole, unless it is there as it should be.
func novnc() error {
	if sum, err := sumOf(novncDir); err == nil && sum == novncSum {
		return nil
	}
	client := http.Client{Timeout: time.Minute}
	response, err := client.Get(novncPackage)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(response.Body, novncMaxBytes))
	if err != nil {
		return fmt.Errorf("reading %s: %w", novncPackage, err)
	}
	digest := sha512.Sum512(raw)
	if got := "sha512-" + base64.StdEncoding.EncodeToString(digest[:]); got != novncIntegrity {
		return fmt.Errorf("%s has the digest %s, not %s", novncPackage, got, novncIntegrity)
	}
	if err := os.RemoveAll(novncDir); err != nil {
		return err
	}
	if err := unpack(raw); err != nil {
		return fmt.Errorf("unpacking %s: %w", novncPackage, err)
	}
	sum, err := sumOf(novncDir)
	if err == nil && sum != novncSum {
		err = fmt.Errorf("the files of %s have the sum %s, not %s", novncPackage, sum, novncSum)
	}
	return err
}

// unpack writes the files of the package, all of which lie in its folder package/.
func unpack(raw []byte) error {
	unzipped, err := gzip.NewReader(bytes.NewReader(raw))
	if err != nil {
		return err
	}
	for files := tar.NewReader(unzipped); ; {
		header, err := files.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		path, isInside := strings.CutPrefix(header.Name, "package/")
		if header.Typeflag != tar.TypeReg || !isInside || !filepath.IsLocal(path) {
			return fmt.Errorf("%s is no file of a package", header.Name)
		}
		content, err := io.ReadAll(io.LimitReader(files, novncMaxBytes))
		if err != nil {
			return err
		}
		if err := write(filepath.Join(novncDir, path), content); err != nil {
			return err
		}
	}
}

// sumOf is a digest of all files in a directory, with their paths.
func sumOf(dir string) (string, error) {
	sum := sha256.New()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		fmt.Fprintf(sum, "%x  %s\n", sha256.Sum256(content), relative)
		return nil
	})
	return fmt.Sprintf("%x", sum.Sum(nil)), err
}
