package bridge

import "testing"

// A message is known again by its own gateway property, wherever that stands, and not
// by another's, nor by the same bytes inside of a value.
func TestOwn(t *testing.T) {
	m, err := NewMapper(MapperOptions{Gateway: "gw-1", Org: "o", Site: "s"})
	if err != nil {
		t.Fatal(err)
	}
	own, other := appendUser(nil, "gateway", "gw-1"), appendUser(nil, "gateway", "gw-10")
	content := appendString([]byte{0x01, 1}, 0x03, "text")
	for _, tt := range []struct {
		name  string
		props []byte
		want  bool
	}{
		{"none", nil, false},
		{"own", own, true},
		{"another's", other, false},
		{"behind another's", append(append([]byte{}, other...), own...), true},
		{"behind others", append(append([]byte{}, content...), own...), true},
		{"inside of a value", appendUser(nil, "k", string(own)), false},
		{"inside of a value, and behind it", append(appendUser(nil, "k", string(own)), own...), true},
		{"inside of a key", appendUser(nil, string(own), "v"), false},
		{"cut off", own[:len(own)-1], false},
		{"marked", m.Mark(content), true},
	} {
		if got := m.Own(tt.props); got != tt.want {
			t.Errorf("%s: %t", tt.name, got)
		}
	}
}

func FuzzStartsProperty(f *testing.F) {
	f.Add(appendUser(nil, "gateway", "gw"), 0)
	f.Add([]byte{0x26, 0xFF, 0xFF}, 1)
	f.Add([]byte{0x0B, 0x80}, 1)
	f.Fuzz(func(t *testing.T, props []byte, at int) {
		if startsProperty(props, at) && (at < 0 || at >= len(props)) {
			t.Errorf("a property begins at %d of %d", at, len(props))
		}
	})
}
