package access

import (
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

const (
	// DefaultIterations are a hundred times what mosquitto_passwd 2.0 takes: 7 ms
	// on a server of 2025, and some ten times that on the smallest gateways, where
	// hundreds of clients may come at the same time after a power cut.
	DefaultIterations = 10_000
	// MaxIterations bounds what one login can cost.
	MaxIterations = 250_000

	saltSize = 12 // as mosquitto_passwd 2.0 makes them
	maxSalt  = 1024
	hashSize = sha512.Size
)

// hash is a password as it stands in a file: $7$iterations$salt$hash, PBKDF2
// with HMAC-SHA-512, or $6$salt$hash, SHA-512 of the password and the salt.
type hash struct {
	iterations int // 0: $6$
	salt       []byte
	sum        [hashSize]byte
}

var (
	errNotHashed = errors.New("is not hashed")
	errArgon     = errors.New("is an argon2id hash, which is not supported")
	errDamaged   = errors.New("is a damaged hash")
)

// parseHash reads what stands behind the user's name.
func parseHash(s string) (*hash, error) {
	kind, rest, _ := strings.Cut(strings.TrimPrefix(s, "$"), "$")
	h := new(hash)
	switch {
	case !strings.HasPrefix(s, "$"):
		return nil, errNotHashed
	case strings.HasPrefix(kind, "argon2"):
		return nil, errArgon
	case kind == "6":
	case kind == "7":
		var count string
		count, rest, _ = strings.Cut(rest, "$")
		n, err := strconv.Atoi(count)
		switch {
		case err != nil && !errors.Is(err, strconv.ErrRange) || err == nil && n < 1 || strings.HasPrefix(count, "+"):
			return nil, fmt.Errorf("%w: its iterations are no number", errDamaged)
		case err != nil || n > MaxIterations:
			return nil, fmt.Errorf("takes more than %d iterations to check", MaxIterations)
		}
		h.iterations = n
	default:
		return nil, fmt.Errorf("is of a kind that is not supported, neither $7$ nor $6$")
	}
	salt, sum, _ := strings.Cut(rest, "$")
	var err error
	if h.salt, err = base64.StdEncoding.Strict().DecodeString(salt); err != nil || len(h.salt) == 0 || len(h.salt) > maxSalt {
		return nil, fmt.Errorf("%w: its salt is no base64", errDamaged)
	}
	b, err := base64.StdEncoding.Strict().DecodeString(sum)
	if err != nil || len(b) != hashSize {
		return nil, fmt.Errorf("%w: it is not %d bytes in base64", errDamaged, hashSize)
	}
	copy(h.sum[:], b)
	return h, nil
}

// of hashes a password with the salt and the iterations of h.
func (h *hash) of(password []byte) (sum [hashSize]byte, err error) {
	if h.iterations == 0 {
		d := sha512.New()
		d.Write(password)
		d.Write(h.salt)
		d.Sum(sum[:0])
		return sum, nil
	}
	b, err := pbkdf2.Key(sha512.New, string(password), h.salt, h.iterations, hashSize)
	copy(sum[:], b)
	return sum, err
}

// NewHash is a password as a password file has it, with a salt of its own.
func NewHash(password []byte, iterations int) (string, error) {
	if iterations < 1 || iterations > MaxIterations {
		return "", fmt.Errorf("%d iterations are not between 1 and %d", iterations, MaxIterations)
	}
	h := hash{iterations: iterations, salt: make([]byte, saltSize)}
	rand.Read(h.salt)
	sum, err := h.of(password)
	if err != nil {
		return "", fmt.Errorf("hash a password: %w", err)
	}
	enc := base64.StdEncoding
	return fmt.Sprintf("$7$%d$%s$%s", iterations, enc.EncodeToString(h.salt), enc.EncodeToString(sum[:])), nil
}
