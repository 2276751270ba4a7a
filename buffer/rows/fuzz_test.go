package rows

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// Of a file that is damaged anywhere, no row comes back that was not put, and
// opening it says what it is.
func FuzzDamaged(f *testing.F) {
	dir := f.TempDir()
	whole := filepath.Join(dir, "whole.db")
	s, err := Open(whole, []string{"a", "b"}, Options{PageSize: 1024})
	if err != nil {
		f.Fatal(err)
	}
	put := map[string]string{}
	err = s.Update(func(tx Tx) error {
		for i := range 100 {
			k, v := string(rune('A'+i)), string(make([]byte, i))
			put[k] = v
			if err := errors.Join(tx.Put("a", []byte(k), []byte(v)), tx.Put("b", []byte(k), []byte(v))); err != nil {
				return err
			}
		}
		return nil
	})
	if err := errors.Join(err, s.Close()); err != nil {
		f.Fatal(err)
	}
	good, err := os.ReadFile(whole)
	if err != nil {
		f.Fatal(err)
	}
	path := filepath.Join(dir, "damaged.db")
	f.Add(uint32(2048), []byte{0xff}, uint32(4096), []byte{1, 2, 3}, uint32(100000))
	f.Add(uint32(0), make([]byte, 2048), uint32(0), []byte{}, uint32(100000))
	f.Add(uint32(3072), []byte{}, uint32(0), []byte{}, uint32(5000))
	f.Fuzz(func(t *testing.T, at uint32, with []byte, at2 uint32, with2 []byte, size uint32) {
		p := append([]byte(nil), good...)
		copy(p[int(at)%len(p):], with)
		copy(p[int(at2)%len(p):], with2)
		p = p[:min(len(p), int(size))]
		if err := os.WriteFile(path, p, 0o600); err != nil {
			t.Fatal(err)
		}
		_ = Salvage(path, []string{"a", "b"}, func(_ string, k, v []byte) {
			if want, ok := put[string(k)]; !ok || want != string(v) {
				t.Fatalf("row %q has %d bytes", k, len(v))
			}
		})
		s, err := Open(path, []string{"a", "b"}, Options{PageSize: 1024})
		if errors.Is(err, ErrInUse) {
			t.Fatal(err) // nobody else has it
		}
		if err != nil {
			return
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// A page that says which others are free is damaged: writing is out of the question,
// and every row is there to be salvaged.
func TestSalvageWithoutFreelist(t *testing.T) {
	const pageSize = 1024
	path := filepath.Join(t.TempDir(), "x.db")
	s, err := Open(path, []string{"a"}, Options{PageSize: pageSize})
	if err != nil {
		t.Fatal(err)
	}
	err = s.Update(func(tx Tx) error { return tx.Put("a", []byte("key"), []byte("value")) })
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const freelist = 0x10 // the flag of such a page, in its header
	for at := 2 * pageSize; at < len(raw); at += pageSize {
		if bytes.Equal(raw[at+8:at+10], []byte{freelist, 0}) {
			raw[at+8] = 0
		}
	}
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, []string{"a"}, Options{PageSize: pageSize}); !errors.Is(err, ErrDamaged) {
		t.Fatalf("open: %v", err)
	}
	found := ""
	if err := Salvage(path, []string{"a"}, func(_ string, k, v []byte) { found += string(k) + string(v) }); err != nil || found != "keyvalue" {
		t.Errorf("%q is salvaged, %v", found, err)
	}
}
