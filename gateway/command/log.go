package command

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
)

// The audit log takes at most about this.
const (
	logBytes = 16 << 20 // of one file
	logFiles = 4        // older ones: audit.log.1 is the newest of them
)

// Log is a file of lines that is only ever added to, and that makes way for a new one
// when it is full. Append may be called concurrently.
type Log struct {
	path string
	most int64 // bytes of one file

	mu   sync.Mutex // guards what follows; held over the writing, which is one after the other
	file *os.File
	size int64
	torn bool // the last write may have left a part of a line
}

// OpenLog opens the log in a file, or makes it.
func OpenLog(path string) (*Log, error) {
	l := &Log{path: path, most: logBytes}
	if err := l.open(); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *Log) open() error {
	f, err := os.OpenFile(l.path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open the audit log: %w", err)
	}
	info, err := f.Stat()
	last := []byte{'\n'}
	if err == nil && info.Size() > 0 {
		_, err = f.ReadAt(last, info.Size()-1)
	}
	if err == nil {
		err = syncDir(filepath.Dir(l.path))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("open the audit log: %w", err), f.Close())
	}
	l.file, l.size, l.torn = f, info.Size(), last[0] != '\n'
	return nil
}

// Append adds lines, each with its newline. They are durable on return of nil.
func (l *Log) Append(lines []byte) error {
	if len(lines) == 0 {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		if err := l.open(); err != nil {
			return err
		}
	}
	if l.size > 0 && l.size+int64(len(lines)) > l.most {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	if l.torn { // a crash or a full disk has cut a line off
		lines = append([]byte{'\n'}, lines...)
	}
	l.torn = true
	n, err := l.file.Write(lines)
	l.size += int64(n)
	if err == nil {
		err = l.file.Sync()
	}
	if err != nil {
		return fmt.Errorf("write the audit log: %w", err)
	}
	l.torn = false
	return nil
}

// rotate begins a new file. l.mu is held.
func (l *Log) rotate() error {
	err := l.file.Close()
	l.file = nil // opened again by the next Append, whatever fails here
	for n := logFiles; n > 0 && err == nil; n-- {
		from := fmt.Sprintf("%s.%d", l.path, n-1)
		if n == 1 {
			from = l.path
		}
		if err = os.Rename(from, fmt.Sprintf("%s.%d", l.path, n)); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	if err != nil {
		return fmt.Errorf("begin a new audit log: %w", err)
	}
	return l.open()
}

// Close closes the file.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	return err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
