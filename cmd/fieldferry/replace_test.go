//go:build unix

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func TestReplaceFile(t *testing.T) {
	dir := t.TempDir()
	path, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
	if err := os.Symlink("file", link); err != nil {
		t.Fatal(err)
	}
	put := func(text string) func([]byte) ([]byte, error) {
		return func([]byte) ([]byte, error) { return []byte(text), nil }
	}
	if _, _, err := replaceFile(path, false, put("x")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
	for _, c := range []struct{ mode, before, after fs.FileMode }{
		{0, 0, 0o600}, {0o644, 0o644, 0o600}, {0o640, 0o640, 0o640}, {0o600, 0o600, 0o600}, {0o604, 0o604, 0o600}, {0o660, 0o660, 0o660},
	} {
		if c.mode != 0 {
			if err := os.Chmod(path, c.mode); err != nil {
				t.Fatal(err)
			}
		}
		before, after, err := replaceFile(path, c.mode == 0, put(fmt.Sprint(c.mode)))
		if err != nil || before != c.before || after != c.after {
			t.Errorf("mode %o: %o, %o, %v", c.mode, before, after, err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != c.after {
			t.Errorf("mode %o becomes %v, %v", c.mode, info.Mode(), err)
		}
	}
	if _, _, err := replaceFile(link, false, put("by link")); err != nil {
		t.Error(err)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode()&fs.ModeSymlink == 0 {
		t.Errorf("the link is one no more: %v, %v", info, err)
	}
	if _, _, err := replaceFile(path, false, func([]byte) ([]byte, error) { return nil, errors.New("no") }); err == nil || err.Error() != "no" {
		t.Errorf("an edit that fails: %v", err)
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "by link" {
		t.Errorf("%q, %v", text, err)
	}
	if _, _, err := replaceFile(dir, false, put("x")); err == nil {
		t.Error("a folder is replaced")
	}

	// Many at a time: none undoes what another one did.
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			_, _, err := replaceFile(path, false, func(text []byte) ([]byte, error) { return fmt.Appendf(text, "\n%d.", i), nil })
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	text, err := os.ReadFile(path)
	for i := range 50 {
		if !strings.Contains(string(text), fmt.Sprintf("\n%d.", i)) {
			t.Errorf("%d is missing, %v", i, err)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("left over: %v, %v", entries, err)
	}
}
