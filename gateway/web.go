package gateway

import (
	"context"
	"crypto/subtle"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/fieldferry/fieldferry/gateway/certs"
	"github.com/fieldferry/fieldferry/gateway/config"
	"github.com/fieldferry/fieldferry/gateway/health"
)

const (
	webTimeout = 10 * time.Second // for a request, and for its answer
	webHeader  = 16 << 10         // bytes
)

// web is an HTTP server with its listener.
type web struct {
	listener net.Listener
	server   *http.Server
}

func newWeb(l net.Listener, h http.Handler, log *slog.Logger) *web {
	return &web{l, &http.Server{
		Handler: h, ReadTimeout: webTimeout, WriteTimeout: 2 * webTimeout, IdleTimeout: time.Minute, MaxHeaderBytes: webHeader,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug), // what strangers send is no error of ours
	}}
}

// run serves until ctx ends, and a moment longer for requests that are under way.
func (w *web) run(ctx context.Context) error {
	done := make(chan error, 1)
	go func() { done <- w.server.Serve(w.listener) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if w.server.Shutdown(last) != nil {
		w.server.Close()
	}
	<-done
	return nil
}

func (w *web) close() {
	if w != nil {
		w.listener.Close()
	}
}

// openHTTP listens where the site file says.
func (g *Gateway) openHTTP(h *config.HTTP) (*web, error) {
	log := g.log.With("part", "http")
	var files *certs.Server
	if h.Cert != "" {
		var err error
		files, err = certs.OpenServer(certs.ServerFiles{Cert: h.Cert, Key: h.Key}, func(err error) {
			log.Error("certificates have changed and cannot be used; those from before stay in use", "err", err)
		})
		if err != nil {
			return nil, fmt.Errorf("%s: http.tls: %w", h.Pos, err)
		}
	}
	l, err := net.Listen("tcp", h.Listen)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("%s: http.listen: %s is in use by %s: choose another port, or stop it", h.Pos, h.Listen, portOwner("/proc", h.Listen))
	}
	if err != nil {
		return nil, fmt.Errorf("%s: http.listen: %w", h.Pos, err)
	}
	if files != nil {
		l = tls.NewListener(l, files.Config())
	}
	log.Info("health is served; the dashboard, REST API and metrics are not in this version", "listen", l.Addr().String())
	return newWeb(l, g.public(&h.Tokens), log), nil
}

// public are the pages for everybody. Only who shows a token sees details, unless
// there are no tokens, which is so on loopback addresses only.
func (g *Gateway) public(tokens *config.Tokens) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		report, err := g.Health(r.Context())
		switch {
		case err != nil:
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		case !report.Serves():
			http.Error(w, "messages cannot be accepted", http.StatusServiceUnavailable)
		default:
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			fmt.Fprintln(w, "ok")
		}
	})
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, r *http.Request) {
		details, err := authorized(r, tokens)
		if err != nil {
			w.Header().Set("WWW-Authenticate", "Bearer")
			http.Error(w, err.Error(), http.StatusUnauthorized)
			return
		}
		report, err := g.Health(r.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		shown := *report
		if !details {
			shown.Details = nil
		}
		writeJSON(w, httpCode(report), &shown)
	})
	return mux
}

// httpCode is that of a health report. With an upstream that is away the gateway still
// does what it is there for, and whoever restarts it then does harm.
func httpCode(r *health.Report) int {
	if !r.Serves() {
		return http.StatusServiceUnavailable
	}
	return http.StatusOK
}

func writeJSON(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v) // the connection is gone if that fails
}

// authorized reports whether a request may see details. One with a wrong token is an
// error: whoever sends one believes that it is right.
func authorized(r *http.Request, tokens *config.Tokens) (bool, error) {
	shown, sent := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	none, match := true, false
	for _, t := range []config.Secret{tokens.Viewer, tokens.Operator, tokens.Admin} {
		if t.IsZero() {
			continue
		}
		none = false
		want, err := t.Read()
		if err == nil && want != "" && subtle.ConstantTimeCompare([]byte(want), []byte(shown)) == 1 {
			match = true
		}
	}
	switch {
	case none || match:
		return true, nil
	case sent:
		return false, errors.New("that is none of http.tokens")
	}
	return false, nil
}

// ControlSocket is where a gateway with a data folder answers those who may use that
// folder. A path that is too long for a socket is made one from the working folder.
func ControlSocket(dataDir string) string {
	const longest = 100 // sun_path has 104 to 108 bytes, unix(7)
	path := filepath.Join(dataDir, "control.sock")
	if len(path) <= longest {
		return path
	}
	if wd, err := os.Getwd(); err == nil {
		if rel, err := filepath.Rel(wd, path); err == nil && len(rel) < len(path) {
			return rel
		}
	}
	return path
}

// openControl listens for `fieldferry status`. The data folder is ours alone, so what
// is there of that name is from a process that is gone.
func (g *Gateway) openControl() (*web, error) {
	path := ControlSocket(g.config.Gateway.DataDir)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		s, err := g.Status(r.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		writeJSON(w, http.StatusOK, s)
	})
	return newWeb(l, mux, g.log.With("part", "control")), nil
}
