package opcua

import (
	"testing"
)

func TestParseNode(t *testing.T) {
	namespaces := []string{"http://opcfoundation.org/UA/", "urn:server", "urn:acme:press", "urn:a;b%c"}
	for text, want := range map[string]string{
		"i=85":                   "i=85",
		"ns=0;i=2258":            "i=2258",
		"ns=2;s=Pump.Speed":      "ns=2;s=Pump.Speed",
		"ns=2;s=a;b=c":           "ns=2;s=a;b=c",
		"s=x":                    "s=x",
		"nsu=urn:acme:press;i=7": "ns=2;i=7",
		"nsu=urn:a%3Bb%25c;s=x":  "ns=3;s=x",
		"ns=1;g=72962B91-FA75-4AE6-8D28-B404DC7DAF63": "ns=1;g=72962B91-FA75-4AE6-8D28-B404DC7DAF63",
		"ns=1;b=AQID":           "ns=1;b=AQID",
		"ns=65535;i=4294967295": "ns=65535;i=4294967295",
	} {
		r, err := parseNode(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		id, ok := r.at(namespaces)
		if !ok || id.String() != want {
			t.Errorf("%s: %v, want %s", text, id, want)
			continue
		}
		back, err := parseNode(portable(id, namespaces))
		if err != nil {
			t.Errorf("%s: %v", portable(id, namespaces), err)
			continue
		}
		if again, ok := back.at(namespaces); !ok || again.String() != id.String() {
			t.Errorf("%s comes back as %v", text, again)
		}
	}
	for _, text := range []string{"", "x", "i=", "i=-1", "i=4294967296", "ns=65536;i=1", "ns=x;i=1", "ns=1", "nsu=;i=1", "g=123", "b=?", "q=1", "ns=1;x"} {
		if _, err := parseNode(text); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
	r, err := parseNode("nsu=urn:nobody;i=1")
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := r.at(namespaces); ok {
		t.Error("a namespace is found that the server lacks")
	}
}

func FuzzNode(f *testing.F) {
	for _, s := range []string{"i=85", "ns=2;s=Pump", "nsu=urn:a%3B;g=72962B91-FA75-4AE6-8D28-B404DC7DAF63", "ns=1;b=AQID"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := parseNode(s)
		if err != nil {
			return
		}
		namespaces := []string{"", r.uri, "urn:x"}
		id, ok := r.at(namespaces)
		if !ok {
			t.Fatalf("%q: its own namespace is not found", s)
		}
		back, err := parseNode(portable(id, namespaces))
		if err != nil {
			t.Fatalf("%q becomes %q: %v", s, portable(id, namespaces), err)
		}
		if again, ok := back.at(namespaces); !ok || again.String() != id.String() {
			t.Fatalf("%q becomes %v", s, again)
		}
	})
}
