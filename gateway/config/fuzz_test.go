package config

import (
	"os"
	"path/filepath"
	"testing"
)

// Whatever the file is, there is a value or a problem, and no panic.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range append(files, "../../examples/site.yaml") {
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	dir := f.TempDir()
	env := func(name string) (string, bool) { return "x", name == "X" }
	f.Fuzz(func(t *testing.T, data []byte) {
		c, ps := Parse(filepath.Join(dir, "site.yaml"), data, Options{Getenv: env, Hostname: "host"})
		bad := false
		for _, p := range ps {
			bad = bad || !p.Warning
			if p.Text == "" || p.Line < 0 || p.Col < 0 {
				t.Errorf("problem %+v", p)
			}
		}
		if bad == (c != nil) {
			t.Errorf("a value: %v, problems: %v", c != nil, ps)
		}
	})
}
