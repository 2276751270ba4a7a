package config

import (
	"fmt"
	"io"
	"log/slog"
)

// Secret is a password, token or key. Whatever prints it prints ***.
type Secret struct {
	text string
	file string // absolute, if the whole of it came from there
}

// IsZero reports whether there is none.
func (s Secret) IsZero() bool { return s == Secret{} }

// Value is the secret as it was when the site file was read.
func (s Secret) Value() string { return s.text }

// Read is the secret as it is now: one that is a ${file:} and nothing else is
// read afresh, so that it can be rotated.
func (s Secret) Read() (string, error) {
	if s.file == "" {
		return s.text, nil
	}
	text, err := readText(s.file)
	if err == nil && text == "" {
		err = fmt.Errorf("%s is empty", s.file)
	}
	return text, err
}

const hidden = "***"

func (s Secret) String() string               { return hidden }
func (s Secret) Format(f fmt.State, _ rune)   { io.WriteString(f, hidden) }
func (s Secret) MarshalText() ([]byte, error) { return []byte(hidden), nil }
func (s Secret) LogValue() slog.Value         { return slog.StringValue(hidden) }
