package log

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
)

// Guard runs f, which reads or writes a mapped file, and turns what damage in
// the file makes of it, a panic or a memory fault, into an error.
func Guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", errPanic, r)
		}
	}()
	return f()
}

var errPanic = fmt.Errorf("reading the file ended in a panic: %w", ErrDamaged)

// NoSpace reports whether a write failed for want of room: nothing of it is
// stored, and the same file can be written again when there is room. A disk that
// says so only in the sync has an outcome that nobody knows: false.
func NoSpace(err error) bool {
	var pe *os.PathError
	return errors.As(err, &pe) && slices.ContainsFunc(noRoom, func(e error) bool { return errors.Is(pe, e) })
}

// fileLimit reports whether a write failed because its file may not grow, as
// setrlimit(2) or the file system has it. Another file may have room.
func fileLimit(err error) bool { return NoSpace(err) && errors.Is(err, syscall.EFBIG) }

var noRoom = []error{syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG}

// GrowError gives an error of bbolt its cause back, if it is about the size of a
// file, of which bbolt keeps only the text. It grows a file before it writes to it.
func GrowError(err error) error {
	if err == nil {
		return nil
	}
	what, ok := strings.CutPrefix(err.Error(), "file resize error: ")
	if !ok {
		return err
	}
	for _, cause := range noRoom {
		if what, ok := strings.CutSuffix(what, ": "+cause.Error()); ok {
			op, path, _ := strings.Cut(what, " ")
			return &os.PathError{Op: op, Path: path, Err: cause}
		}
	}
	return err
}

// MakeDir makes a folder, and what is missing of those above it; their names are
// durable on return. One that is there already is left as it is.
func MakeDir(dir string) error {
	err := os.Mkdir(dir, 0o700)
	above := filepath.Dir(dir)
	switch {
	case errors.Is(err, os.ErrExist):
		return os.MkdirAll(dir, 0o700) // says so if it is no folder
	case errors.Is(err, os.ErrNotExist) && above != dir:
		if err := MakeDir(above); err != nil {
			return err
		}
		err = os.Mkdir(dir, 0o700)
	}
	if err != nil {
		return err
	}
	return SyncDir(above)
}

// SyncDir makes the names in a folder durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func seqKey(s Seq) []byte { return binary.BigEndian.AppendUint64(nil, uint64(s)) }

func parseSeqKey(k []byte) (Seq, bool) {
	if len(k) != 8 {
		return 0, false
	}
	return Seq(binary.BigEndian.Uint64(k)), true
}
