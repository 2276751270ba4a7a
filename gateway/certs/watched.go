package certs

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"sync"
	"time"
)

// checkEvery is how often files are looked at, at the most. Nothing looks while nobody
// asks.
const checkEvery = time.Second

// watched is a configuration that is as some files are, or were when they could last be
// used.
type watched struct {
	names  []string
	load   func() (*tls.Config, error)
	failed func(error) // told when changed files cannot be used, once for each change; may be nil

	mu      sync.Mutex // guards what follows
	checked time.Time
	state   string // of the files that were read, or that could not be
	config  *tls.Config
	err     error // why the files as they are cannot be used
}

// open reads the files for the first time.
func (w *watched) open() error {
	w.checked, w.state = time.Now(), state(w.names)
	var err error
	w.config, err = w.load()
	return err
}

// Err is why the files as they are cannot be used, nil if they are in use.
func (w *watched) Err() error {
	w.current()
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// Leaf is the certificate in use; nil if there is none.
func (w *watched) Leaf() *x509.Certificate {
	c := w.current()
	if len(c.Certificates) == 0 {
		return nil
	}
	return c.Certificates[0].Leaf
}

// Chain is the certificate in use and those that came with it.
func (w *watched) Chain() (all []*x509.Certificate) {
	for _, c := range w.current().Certificates {
		for _, der := range c.Certificate {
			if one, err := x509.ParseCertificate(der); err == nil {
				all = append(all, one)
			}
		}
	}
	return all
}

// current returns what is in force, having looked whether the files have changed.
func (w *watched) current() *tls.Config {
	w.mu.Lock()
	if time.Since(w.checked) < checkEvery {
		defer w.mu.Unlock()
		return w.config
	}
	w.checked = time.Now()
	was := w.state
	w.mu.Unlock()
	is := state(w.names)
	if is == was {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.config
	}
	config, err := w.load()
	w.mu.Lock()
	w.state, w.err = is, err
	if err == nil {
		w.config = config
	}
	config = w.config
	w.mu.Unlock()
	if err != nil && w.failed != nil {
		w.failed(err)
	}
	return config
}

// state changes when one of the files does.
func state(names []string) string {
	var b bytes.Buffer
	for _, name := range names {
		if name == "" {
			continue
		}
		info, err := os.Stat(name)
		if err != nil {
			fmt.Fprintf(&b, "%s: %v\n", name, err)
			continue
		}
		fmt.Fprintf(&b, "%s: %d %d\n", name, info.Size(), info.ModTime().UnixNano())
	}
	return b.String()
}
