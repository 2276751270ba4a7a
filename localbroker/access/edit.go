package access

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	maxUser     = 1024
	maxPassword = 1024
)

// badUser says what is wrong with the name of a user.
func badUser(user string) string {
	switch {
	case user == "":
		return "is empty"
	case len(user) > maxUser:
		return fmt.Sprintf("is longer than %d bytes", maxUser)
	case !utf8.ValidString(user):
		return "is not UTF-8"
	case strings.ContainsFunc(user, unicode.IsControl):
		return "contains a control character"
	case strings.TrimSpace(user) != user:
		return "begins or ends with a space"
	case strings.Contains(user, ":"):
		return "contains a colon, which ends it in a password file"
	case user[0] == '#':
		return "begins with #, as comments do"
	}
	return ""
}

// CheckUser says what is wrong with the name of a user, if a password file
// cannot have it.
func CheckUser(user string) error {
	if why := badUser(user); why != "" {
		return errors.New("the user name " + why)
	}
	return nil
}

// CheckPassword says what is wrong with a password that is to be set: Mosquitto
// must be able to check it as well.
func CheckPassword(password []byte) error {
	switch {
	case len(password) == 0:
		return errors.New("the password is empty")
	case len(password) > maxPassword:
		return fmt.Errorf("the password is longer than %d bytes", maxPassword)
	case bytes.IndexByte(password, 0) >= 0:
		return errors.New("the password contains a zero byte")
	}
	return nil
}

// SetUser returns the text of a password file with hash as the password of
// user, and whether the user was there before. Everything else in it stays as it is.
func SetUser(file []byte, user, hash string) (changed []byte, was bool) {
	return edit(file, user, user+":"+hash)
}

// DeleteUser returns the text of a password file without a user, and whether
// the user was there.
func DeleteUser(file []byte, user string) (changed []byte, was bool) {
	return edit(file, user, "")
}

// edit puts a line in the place of the first of a user, and takes the user's
// others out; "" takes all out.
func edit(file []byte, user, put string) (out []byte, was bool) {
	for line := range bytes.Lines(file) {
		text := bytes.TrimSpace(line)
		name, _, _ := bytes.Cut(text, []byte(":"))
		if len(text) == 0 || text[0] == '#' || string(name) != user {
			out = append(out, line...)
			continue
		}
		if !was && put != "" {
			out = append(append(out, put...), line[len(bytes.TrimRight(line, "\r\n")):]...)
		}
		was = true
	}
	if !was && put != "" {
		if len(out) > 0 && out[len(out)-1] != '\n' {
			out = append(out, '\n')
		}
		out = append(append(out, put...), '\n')
	}
	return out, was
}
