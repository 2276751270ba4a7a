package log

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestHardwareAgrees(t *testing.T) {
	wall := time.Unix(1_790_000_000, 0)
	for _, c := range []struct {
		name string
		rtcs []string // since_epoch of each; "" is one that cannot be read
		want bool
	}{
		{"none", nil, false},
		{"right", []string{"1789999999\n"}, true},
		{"local time", []string{"1790050400\n"}, true},
		{"no battery", []string{"35\n"}, false},
		{"a day off", []string{"1790086400\n"}, false},
		{"the second", []string{"35\n", "1790000001\n"}, true},
		{"unreadable, and not a number", []string{"", "x"}, false},
	} {
		dir := t.TempDir()
		for i, text := range c.rtcs {
			path := filepath.Join(dir, "rtc"+string(rune('0'+i)), "since_epoch")
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if text == "" {
				if err := os.Mkdir(path, 0o700); err != nil {
					t.Fatal(err)
				}
			} else if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got := hardwareAgrees(dir, wall); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
	if hardwareAgrees(filepath.Join(t.TempDir(), "none"), wall) {
		t.Error("no folder, and yet a clock")
	}
}
