package main

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/fieldferry/fieldferry/buffer"
)

// plainLog is what the buffer is held against: the same payloads, each with its
// length and checksum, appended to segments of 32 MiB with one write and one
// fdatasync for all that wait; read back in order, with a cursor that is made
// durable once a second, and segments removed when they are drained.
type plainLog struct {
	dir     string
	wake    chan struct{}
	done    sync.WaitGroup
	writing *os.File
	size    int64 // of the segment that is written

	mu      sync.Mutex // guards what follows
	waiting []plainEntry
	closed  bool
	last    int           // segment that is written
	ends    map[int]int64 // durable bytes of each segment
	written int64         // commits

	// Of the reader.
	segment int
	reading *os.File
	off     int64 // of what was read
	buf     []byte
	cursor  *os.File
	saved   time.Time
}

type plainEntry struct {
	payload []byte
	receipt buffer.Receipt
}

const segmentBytes = 32 << 20

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func openPlain(dir string) (*plainLog, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	l := &plainLog{dir: dir, wake: make(chan struct{}, 1), ends: map[int]int64{}, saved: time.Now()}
	var err error
	if l.cursor, err = os.Create(filepath.Join(dir, "cursor")); err != nil {
		return nil, err
	}
	if l.writing, err = os.Create(l.path(0)); err != nil {
		return nil, err
	}
	l.done.Go(l.commit)
	return l, nil
}

func (l *plainLog) path(segment int) string {
	return filepath.Join(l.dir, fmt.Sprintf("%08d", segment))
}

func (l *plainLog) append(payload []byte, _ bool, r buffer.Receipt) error {
	l.mu.Lock()
	l.waiting = append(l.waiting, plainEntry{payload, r})
	l.mu.Unlock()
	l.kick()
	return nil
}

func (l *plainLog) kick() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// commit is the goroutine that writes.
func (l *plainLog) commit() {
	var batch []plainEntry
	var buf []byte
	for range l.wake {
		for {
			l.mu.Lock()
			batch, l.waiting = l.waiting, batch[:0]
			closed := l.closed
			l.mu.Unlock()
			if len(batch) == 0 {
				if closed {
					return
				}
				break
			}
			buf = buf[:0]
			for _, e := range batch {
				buf = binary.BigEndian.AppendUint32(buf, uint32(len(e.payload)))
				buf = binary.BigEndian.AppendUint32(buf, crc32.Checksum(e.payload, castagnoli))
				buf = append(buf, e.payload...)
			}
			err := l.write(buf)
			for _, e := range batch {
				e.receipt.Stored(err)
			}
		}
	}
}

func (l *plainLog) write(p []byte) error {
	if l.size >= segmentBytes {
		f, err := os.Create(l.path(l.last + 1))
		if err != nil {
			return err
		}
		if err := l.writing.Close(); err != nil {
			return err
		}
		l.writing, l.size = f, 0
		l.mu.Lock()
		l.last++
		l.mu.Unlock()
	}
	if _, err := l.writing.Write(p); err != nil {
		return err
	}
	if err := datasync(l.writing); err != nil {
		return err
	}
	l.size += int64(len(p))
	l.mu.Lock()
	l.ends[l.last] = l.size
	l.written++
	l.mu.Unlock()
	return nil
}

func (l *plainLog) commits() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.written
}

// next takes up to take messages and checks them.
func (l *plainLog) next() (n int, err error) {
	for n < take {
		if len(l.buf) < 8 || len(l.buf) < 8+int(binary.BigEndian.Uint32(l.buf)) {
			if more, err := l.read(); err != nil || !more {
				return n, err
			}
			continue
		}
		size := int(binary.BigEndian.Uint32(l.buf))
		if crc32.Checksum(l.buf[8:8+size], castagnoli) != binary.BigEndian.Uint32(l.buf[4:]) {
			return n, fmt.Errorf("checksum in %s", l.path(l.segment))
		}
		l.buf = l.buf[8+size:]
		n++
	}
	if time.Since(l.saved) > time.Second {
		if _, err := l.cursor.WriteAt(binary.BigEndian.AppendUint64(nil, uint64(l.segment)<<32|uint64(l.off)), 0); err != nil {
			return n, err
		}
		l.saved = time.Now()
		return n, datasync(l.cursor)
	}
	return n, nil
}

// read reads on; false is the end of what is durable.
func (l *plainLog) read() (bool, error) {
	l.mu.Lock()
	end, last := l.ends[l.segment], l.last
	l.mu.Unlock()
	if l.off == end {
		if l.segment == last {
			return false, nil
		}
		if l.reading != nil {
			if err := l.reading.Close(); err != nil {
				return false, err
			}
		}
		if err := os.Remove(l.path(l.segment)); err != nil {
			return false, err
		}
		l.segment, l.off, l.reading = l.segment+1, 0, nil
		return true, nil
	}
	if l.reading == nil {
		var err error
		if l.reading, err = os.Open(l.path(l.segment)); err != nil {
			return false, err
		}
	}
	const chunk = 256 << 10
	rest := len(l.buf)
	buf := make([]byte, rest+int(min(chunk, end-l.off)))
	copy(buf, l.buf)
	if _, err := l.reading.ReadAt(buf[rest:], l.off); err != nil && err != io.EOF {
		return false, err
	}
	l.off += int64(len(buf) - rest)
	l.buf = buf
	return true, nil
}

func (l *plainLog) close() error {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.kick()
	l.done.Wait()
	if l.reading != nil {
		l.reading.Close()
	}
	l.cursor.Close()
	return l.writing.Close()
}
