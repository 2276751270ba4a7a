package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/fieldferry/fieldferry/adapters"
	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/buffer/simulated"
	"github.com/fieldferry/fieldferry/gateway/command"
)

// noAudit is an audit log that takes everything.
type noAudit struct{}

func (noAudit) Append([]byte) error { return nil }

// TestJournalModel holds the journal against a map, over crashes, failures and time.
func TestJournalModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		synctest.Test(t, func(t *testing.T) {
			type known struct {
				command.Record
				at time.Time
			}
			machine := simulated.New(rapid.Uint64().Draw(rt, "seed"))
			began := time.Now()
			var j *journal
			open := func() {
				life := machine.On()
				var err error
				if j, _, err = newJournal(life.Store("commands"), "origin"); err != nil {
					rt.Fatal(err)
				}
				j.audit, j.remember = noAudit{}, time.Hour
				j.value = func(dst []byte, _ adapters.Value) []byte { return dst }
				j.stamp = func() buffer.Stamp { return buffer.Stamp{Boot: 1, Uptime: time.Since(began)} }
				j.age = func(s buffer.Stamp) time.Duration { return time.Since(began) - s.Uptime }
			}
			open()
			model := map[command.Key]known{}
			key := func() command.Key {
				return command.Key{Issuer: rapid.SampledFrom([]string{"a", "b", "ab"}).Draw(rt, "issuer"), ID: rapid.SampledFrom([]string{"1", "2", "b1", "3"}).Draw(rt, "id")}
			}
			n := 0
			rt.Repeat(map[string]func(*rapid.T){
				"write": func(rt *rapid.T) {
					var records []command.Record
					for range rapid.IntRange(1, 4).Draw(rt, "records") {
						n++
						r := command.Record{Key: key(), State: command.Started, Digest: command.Digest{byte(n)}}
						if rapid.Bool().Draw(rt, "answered") {
							r.State, r.Answer = command.Answered, fmt.Append(nil, "answer ", n)
						}
						records = append(records, r)
					}
					fails := rapid.IntRange(0, 4).Draw(rt, "fails") == 0
					machine.Break(fails)
					err := j.Write(context.Background(), nil, records...)
					machine.Break(false)
					if (err != nil) != fails {
						rt.Fatalf("write: %v", err)
					}
					if err == nil {
						for _, r := range records {
							model[r.Key] = known{r, time.Now()}
						}
					}
				},
				"time": func(*rapid.T) { time.Sleep(25 * time.Minute) },
				"prune": func(rt *rapid.T) {
					pruned, err := j.prune()
					if err != nil {
						rt.Fatal(err)
					}
					for k, r := range model {
						if r.State == command.Answered && time.Since(r.at) > time.Hour {
							delete(model, k)
							pruned--
						}
					}
					if pruned != 0 {
						rt.Fatalf("%d too many were forgotten", pruned)
					}
				},
				"crash": func(*rapid.T) {
					machine.Crash()
					open()
				},
				"": func(rt *rapid.T) {
					for _, issuer := range []string{"a", "b", "ab"} {
						for _, id := range []string{"1", "2", "b1", "3"} {
							k := command.Key{Issuer: issuer, ID: id}
							want, there := model[k]
							for _, old := range []bool{true, false} {
								got, ok, err := j.Find(k, old)
								expect := there && (old || want.State == command.Started || time.Since(want.at) <= time.Hour)
								if err != nil || ok != expect || ok && (got.State != want.State || got.Digest != want.Digest || string(got.Answer) != string(want.Answer)) {
									rt.Fatalf("%v, old %t: %+v %t %v, want %+v %t", k, old, got, ok, err, want, expect)
								}
							}
						}
					}
				},
			})
		})
	})
}

// Nothing is noted without its lines in the audit log.
func TestJournalNeedsTheAuditLog(t *testing.T) {
	table, _, err := openJournal(filepath.Join(t.TempDir(), "commands.db"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	j, _, err := newJournal(table, "origin")
	if err != nil {
		t.Fatal(err)
	}
	full := errors.New("no space left on device")
	j.audit, j.stamp, j.value = failingAudit{full}, func() buffer.Stamp { return buffer.Stamp{} }, func(dst []byte, _ adapters.Value) []byte { return dst }
	k := command.Key{Issuer: "i", ID: "1"}
	if err := j.Write(t.Context(), []command.Event{{What: "started"}}, command.Record{Key: k, State: command.Started}); !errors.Is(err, full) {
		t.Errorf("write: %v", err)
	}
	if _, there, err := j.Find(k, true); there || err != nil {
		t.Errorf("it is noted: %t, %v", there, err)
	}
}

type failingAudit struct{ err error }

func (f failingAudit) Append([]byte) error { return f.err }

// A journal that was damaged, or is not there though commands wait, is told of: what was
// waiting is not carried out.
func TestJournalLost(t *testing.T) {
	for name, harm := range map[string]func(path string) error{
		"damaged": func(path string) error {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for i := 8 << 10; i < len(b); i += 64 {
				b[i] ^= 0x55
			}
			return os.WriteFile(path, b, 0o600)
		},
		"away":             os.Remove,
		"as it should be":  func(string) error { return nil },
		"of another place": func(path string) error { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "commands.db")
			table, lost, err := openJournal(path, slog.New(slog.DiscardHandler))
			if err != nil || lost {
				t.Fatal(lost, err)
			}
			j, _, err := newJournal(table, "origin")
			if err != nil {
				t.Fatal(err)
			}
			j.audit, j.stamp, j.value = noAudit{}, func() buffer.Stamp { return buffer.Stamp{} }, nil
			for i := range 200 {
				r := command.Record{Key: command.Key{Issuer: "i", ID: fmt.Sprint(i)}, State: command.Answered, Answer: []byte(strings.Repeat("x", 100))}
				if err := j.Write(t.Context(), nil, r); err != nil {
					t.Fatal(err)
				}
			}
			table.Close()
			if err := harm(path); err != nil {
				t.Fatal(err)
			}
			origin := "origin"
			if name == "of another place" {
				origin = "other"
			}
			table, lost, err = openJournal(path, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			defer table.Close()
			_, other, err := newJournal(table, origin)
			if err != nil {
				t.Fatal(err)
			}
			if want := name != "as it should be"; (lost || other) != want {
				t.Errorf("lost %t, of another buffer %t", lost, other)
			}
		})
	}
}

// What stands on the disk may be anything: it is read as what was written, or not at all.
func FuzzStoredCommands(f *testing.F) {
	row := journalRow{state: command.Answered, number: 7, at: buffer.Stamp{Boot: 1, Uptime: 2}, digest: command.Digest{3}, answer: []byte("a")}
	e := envelope{form: formCall, device: "d", from: command.Issuer{Client: "c", Username: "u"}}
	f.Add(row.append(nil), e.topic())
	f.Fuzz(func(t *testing.T, p []byte, topic string) {
		if r, ok := parseJournalRow(p); ok && string(r.append(nil)) != string(p) {
			t.Errorf("row %x is read as %+v", p, r)
		}
		if e, ok := parseEnvelope(topic); ok && e.topic() != topic {
			t.Errorf("envelope %q is read as %+v", topic, e)
		}
	})
}
