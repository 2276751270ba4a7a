package config

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write what is found into the testdata files, to be read with care")

const wantPrefix = "# want: "

// TestBad holds one file for each kind of mistake. Its first lines say what is
// to be found, all of it and in this order; places without a file name are in the
// file itself.
func TestBad(t *testing.T) {
	files, err := filepath.Glob("testdata/*.bad.yaml")
	if err != nil || len(files) < 35 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	env := func(name string) (string, bool) {
		text, ok := map[string]string{"SET": "set", "EMPTY": "", "TOKEN": "canary"}[name]
		return text, ok
	}
	here, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range files {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".bad.yaml"), func(t *testing.T) {
			found := func() string {
				c, ps := Load(path, Options{Getenv: env, Hostname: "host"})
				bad := false
				var b strings.Builder
				for _, p := range ps {
					bad = bad || !p.Warning
					text := strings.TrimPrefix(p.String(), path+":")
					text = strings.ReplaceAll(text, here+"/", "")
					b.WriteString(wantPrefix + text + "\n")
				}
				if bad != (c == nil) {
					t.Errorf("a problem is found: %v, a value is returned: %v", bad, c != nil)
				}
				return b.String()
			}
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			head, body := splitWant(string(data))
			got := found()
			if *update && got != head {
				// twice: the number of lines moves what is below them
				for range 2 {
					if err := os.WriteFile(path, []byte(found()+body), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				return
			}
			if got != head {
				t.Errorf("found:\n%s\nwanted:\n%s", got, head)
			}
			if head == "" {
				t.Error("no mistake is wanted")
			}
		})
	}
}

// splitWant cuts what is wanted from the head of a file.
func splitWant(text string) (head, body string) {
	for strings.HasPrefix(text, wantPrefix) {
		i := strings.IndexByte(text, '\n') + 1
		head, text = head+text[:i], text[i:]
	}
	return head, text
}
