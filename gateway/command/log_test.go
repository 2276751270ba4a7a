package command

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func lines(t *testing.T, path string) []string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
}

func openLog(t *testing.T, path string) *Log {
	t.Helper()
	l, err := OpenLog(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestLogMakesWay(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := openLog(t, path)
	l.most = 100
	for i := range 100 {
		if err := l.Append(fmt.Appendf(nil, "line %03d ........\n", i)); err != nil {
			t.Fatal(err)
		}
	}
	files, err := filepath.Glob(path + "*")
	if err != nil || len(files) != logFiles+1 {
		t.Fatalf("files %v, %v", files, err)
	}
	var all []string
	for n := logFiles; n >= 0; n-- {
		name := path
		if n > 0 {
			name = fmt.Sprint(path, ".", n)
		}
		info, err := os.Stat(name)
		if err != nil || info.Size() > l.most || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", name, info, err)
		}
		all = append(all, lines(t, name)...)
	}
	for i, line := range all {
		if want := fmt.Sprintf("line %03d ........", 100-len(all)+i); line != want {
			t.Fatalf("line %d is %q, want %q", i, line, want)
		}
	}
}

// A line that a crash cut off does not swallow the next one.
func TestLogAfterACrash(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	if err := os.WriteFile(path, []byte("{\"a\":1}\n{\"b\":"), 0o600); err != nil {
		t.Fatal(err)
	}
	l := openLog(t, path)
	for _, s := range []string{"{\"c\":1}\n", "{\"d\":1}\n"} {
		if err := l.Append([]byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	if got := strings.Join(lines(t, path), "|"); got != `{"a":1}|{"b":|{"c":1}|{"d":1}` {
		t.Errorf("the log is %s", got)
	}
}

func TestLogConcurrently(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := openLog(t, path)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 20 {
				if err := l.Append(append(bytes.Repeat([]byte{byte('a' + i)}, 300), '\n')); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	all := lines(t, path)
	for _, line := range all {
		if len(line) != 300 || strings.Trim(line, line[:1]) != "" {
			t.Fatalf("line %q", line)
		}
	}
	if len(all) != 160 {
		t.Errorf("%d lines", len(all))
	}
}

// A log that cannot be written says so, and goes on when it can.
func TestLogWithoutAFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	if _, err := OpenLog(filepath.Join(dir, "audit.log")); err == nil {
		t.Fatal("it was opened")
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	l := openLog(t, filepath.Join(dir, "audit.log"))
	l.most = 1
	if err := l.Append([]byte("1\n")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(dir, dir+"-away"); err != nil {
		t.Fatal(err)
	}
	if err := l.Append([]byte("2\n")); err == nil {
		t.Error("a line was written nowhere")
	}
	if err := os.Rename(dir+"-away", dir); err != nil {
		t.Fatal(err)
	}
	if err := l.Append([]byte("3\n")); err != nil {
		t.Error(err)
	}
	if got := lines(t, filepath.Join(dir, "audit.log")); got[len(got)-1] != "3" {
		t.Errorf("the log is %q", got)
	}
}
