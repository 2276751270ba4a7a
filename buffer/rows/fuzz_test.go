package rows

import (
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
		if err != nil {
			return
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
