package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// replaceFile puts what edit makes of a file in its place, at one stroke and
// durably: whoever reads it gets the old or the new one, also after a power cut. Two
// of them at a time wait for each other. Only the owner may read the new file; one
// that was closed to others before keeps what its group might do. It returns the modes before, 0 if the
// file was not there, and after.
func replaceFile(path string, create bool, edit func([]byte) ([]byte, error)) (before, after fs.FileMode, err error) {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real // the link stays
	}
	dir := filepath.Dir(path)
	unlock, err := lockFolder(dir)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	after = 0o600
	var text []byte
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && create:
	case err != nil:
		return 0, 0, err
	case create:
		return 0, 0, fmt.Errorf("%s is there already", path)
	case !info.Mode().IsRegular(): // a device would not be one any more
		return 0, 0, fmt.Errorf("%s is no file", path)
	default:
		if text, err = os.ReadFile(path); err != nil {
			return 0, 0, err
		}
		if before = info.Mode().Perm(); before&0o007 == 0 {
			after = before
		}
	}
	if text, err = edit(text); err != nil {
		return 0, 0, err
	}
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-") // its mode is 0600
	if err != nil {
		return 0, 0, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ignoreMissing(os.Remove(f.Name())))
		}
	}()
	_, err = f.Write(text)
	if err == nil && info != nil {
		err = keepOwner(f, info)
	}
	if err == nil {
		err = f.Chmod(after)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return 0, 0, err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return 0, 0, err
	}
	return before, after, syncFolder(dir)
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
