package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

// TestDemo runs the whole way: the figures at its end are counted, and nothing
// is lost over an outage.
func TestDemo(t *testing.T) {
	var out, errs bytes.Buffer
	if code := run([]string{"demo", "--for", "3s", "--json"}, strings.NewReader(""), &out, &errs); code != 0 {
		t.Fatalf("exit %d: %s%s", code, out.String(), errs.String())
	}
	var r demoResult
	dec := json.NewDecoder(&out)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&r); err != nil {
		t.Fatal(err)
	}
	if r.Lost != 0 || r.Stored != 0 || r.Outages < 1 || r.Polled == 0 || r.Accepted < r.Polled || r.Delivered != r.Accepted || r.Dropped == nil {
		t.Errorf("result %+v", r)
	}
}

// TestRecorderCountsWhatIsMissing makes sure that the demo would see a loss.
func TestRecorderCountsWhatIsMissing(t *testing.T) {
	r := &recorder{streams: make(map[string]*stream)}
	for _, seq := range []string{"o.1.1", "o.1.2", "o.1.4", "o.1.4", "o.1.2", "o.2.1", "o.1.7"} {
		r.count("t", seq)
	}
	if r.Distinct() != 5 || r.Duplicates() != 2 || r.Missing() != 3 {
		t.Errorf("distinct %d, duplicates %d, missing %d; want 5, 2, 3", r.Distinct(), r.Duplicates(), r.Missing())
	}
}
