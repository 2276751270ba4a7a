package main

import (
	"context"
	"log/slog"
	"sync"
)

// lastError keeps the error of the last warning that was logged.
type lastError struct {
	mu   sync.Mutex // guards text
	text string
}

func (l *lastError) get() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text
}

func (l *lastError) logger() *slog.Logger { return slog.New(lastErrorHandler{l}) }

type lastErrorHandler struct{ of *lastError }

func (h lastErrorHandler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.LevelWarn
}

func (h lastErrorHandler) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "error" {
			h.of.mu.Lock()
			h.of.text = a.Value.String()
			h.of.mu.Unlock()
		}
		return true
	})
	return nil
}

func (h lastErrorHandler) WithAttrs([]slog.Attr) slog.Handler { return h }
func (h lastErrorHandler) WithGroup(string) slog.Handler      { return h }
