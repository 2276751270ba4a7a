package access

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"runtime"
	"strings"
	"sync"
)

// Passwords are the users of a password file. It is safe for concurrent use.
type Passwords struct {
	users map[string]*hash
	costs []*hash       // of all users, in the order of the file
	pick  []byte        // key that chooses what an unknown user costs; nobody outside knows it
	slots chan struct{} // holds one token for each check under way
	key   []byte        // of known

	mu    sync.Mutex                   // guards what follows
	known map[string][sha256.Size]byte // by user: who was let in, with what
}

// ReadPasswords reads a password file. Passwords are nil if a problem is no warning.
func ReadPasswords(path string) (*Passwords, []Problem) {
	data, info, err := readFile(path, "create it with: fieldferry passwd -c "+path+" USER")
	if err != nil {
		return nil, []Problem{{File: path, Text: err.Error()}}
	}
	p, problems := ParsePasswords(path, data)
	if info.Mode()&0o004 != 0 {
		problems = append(problems, Problem{File: path, Text: "everybody on this machine may read it; chmod o-r it", Warning: true})
	}
	return p, problems
}

// ParsePasswords is ReadPasswords of what a file holds.
func ParsePasswords(file string, data []byte) (*Passwords, []Problem) {
	r := report{file: file}
	p := &Passwords{users: make(map[string]*hash), known: make(map[string][sha256.Size]byte)}
	firsts := make(map[string]int)
	for n, line := range r.lines(data) {
		user, text, colon := strings.Cut(line, ":")
		if why := badUser(user); why != "" {
			r.mistake(n, "the user name %s; a line is USER:HASH", why)
			continue
		}
		if !colon {
			r.mistake(n, "the user %s has no password; set one: fieldferry passwd %s %s", quote(user), file, user)
			continue
		}
		text, _, _ = strings.Cut(text, ":") // Mosquitto leaves room behind another colon
		h, err := parseHash(text)
		switch {
		case firsts[user] > 0:
			r.mistake(n, "the user %s is in line %d already; take one of the two out", quote(user), firsts[user])
		case err != nil: // which must not show the password
			r.mistake(n, "the password of the user %s %v; set it again: fieldferry passwd %s %s", quote(user), err, file, user)
		default:
			p.users[user] = h
			p.costs = append(p.costs, h)
		}
		if firsts[user] == 0 {
			firsts[user] = n
		}
	}
	if len(firsts) == 0 && !r.failed {
		r.warn(0, "it names no user, so nobody can log in; add one: fieldferry passwd %s USER", file)
	}
	if r.failed {
		return nil, r.all()
	}
	pick := sha256.Sum256(data)
	p.pick = pick[:]
	p.key = make([]byte, sha256.Size)
	rand.Read(p.key)
	p.slots = make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2))
	return p, r.all()
}

// Has reports whether there is such a user.
func (p *Passwords) Has(user string) bool { return p.users[user] != nil }

// Check reports whether the user has this password. To check costs time, so
// that at most half of the processors do it at a time, each check in its turn; the
// error is that ctx ended before that. A user that there is not costs what one of
// those that there are does, always the same one, and one that was let in before costs
// nothing. How long it takes says nothing of the password or its hash.
func (p *Passwords) Check(ctx context.Context, user string, password []byte) (bool, error) {
	h := p.users[user]
	mark := p.mark(user, password)
	if h != nil && p.remembers(user, mark) {
		return true, nil
	}
	model := h
	if model == nil {
		if len(p.costs) == 0 {
			return false, nil
		}
		model = p.costs[p.choose(user)]
	}
	select {
	case p.slots <- struct{}{}:
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
	defer func() { <-p.slots }()
	sum, err := model.of(password)
	if err != nil {
		return false, err
	}
	same := subtle.ConstantTimeCompare(sum[:], model.sum[:]) == 1
	// To HMAC, zero bytes at the end of a short key are as good as none.
	if !same || h == nil || bytes.IndexByte(password, 0) >= 0 {
		return false, nil
	}
	p.mu.Lock()
	p.known[user] = mark
	p.mu.Unlock()
	return true, nil
}

// mark stands for a user with a password. It is of use only to who has the
// key, which this process alone has, and in memory.
func (p *Passwords) mark(user string, password []byte) (m [sha256.Size]byte) {
	d := hmac.New(sha256.New, p.key)
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(len(user)))
	d.Write(n[:])
	d.Write([]byte(user))
	d.Write(password)
	d.Sum(m[:0])
	return m
}

func (p *Passwords) remembers(user string, mark [sha256.Size]byte) bool {
	p.mu.Lock()
	have, ok := p.known[user]
	p.mu.Unlock()
	return subtle.ConstantTimeCompare(have[:], mark[:]) == 1 && ok
}

// choose says which user's check a user that there is not costs.
func (p *Passwords) choose(user string) int {
	d := hmac.New(sha256.New, p.pick)
	d.Write([]byte(user))
	return int(binary.BigEndian.Uint64(d.Sum(nil)) % uint64(len(p.costs)))
}
