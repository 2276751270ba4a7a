package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/fieldferry/fieldferry/gateway/certs"
	"github.com/fieldferry/fieldferry/gateway/config"
	"github.com/fieldferry/fieldferry/localbroker"
	"github.com/fieldferry/fieldferry/localbroker/access"
	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// guard says who may connect to the local broker and what they may do there. It
// never changes: files that have changed make another one.
type guard struct {
	anonymous map[string]bool   // by listener: whether clients without a user name may connect
	passwords *access.Passwords // nil: there are no user names
	acl       *access.ACL       // nil: everybody may do everything
}

// Check reads the files of a site file that config.Load leaves alone, and
// returns what is wrong with them.
func Check(c *config.Config) []config.Problem {
	_, problems := newGuard(c)
	// A site file is often checked where its other files are not.
	for i := range problems {
		for _, path := range []string{c.Broker.PasswordFile, c.Broker.ACLFile} {
			if p := &problems[i]; path != "" && strings.Contains(p.Text, path) && !there(path) {
				p.Warning = true
				p.Text += "; the gateway does not start without it"
			}
		}
	}
	for i := range c.Broker.Listeners {
		if t := c.Broker.Listeners[i].TLS; t != nil {
			server, err := certs.OpenServer(serverFiles(t), nil)
			if err == nil {
				problems = append(problems, expiryWarnings(t.Pos, "tls", server.Chain(), time.Now())...)
			} else {
				p := config.Problem{Pos: t.Pos, Text: fmt.Sprintf("tls: %v", err), Warning: errors.Is(err, fs.ErrNotExist)}
				if p.Warning {
					p.Text += "; the gateway does not start without it"
				}
				problems = append(problems, p)
			}
		}
	}
	for i := range c.Bridges {
		problems = append(problems, checkWayOut(c, &c.Bridges[i], time.Now())...)
	}
	problems = append(problems, alarmProblems(c)...)
	if h := c.HTTP; h != nil {
		problems = append(problems, config.Problem{Pos: h.Pos, Text: "http: this version serves /livez, /readyz and /health; the dashboard, REST API and metrics are not in it", Warning: true})
	}
	return slices.Concat(problems, serialProblems(c), idleDeadbands(c))
}

func there(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// newGuard reads the password_file and the acl_file. The guard is nil if one of
// them has a mistake that is no warning.
func newGuard(c *config.Config) (*guard, []config.Problem) {
	g := &guard{anonymous: make(map[string]bool)}
	for _, l := range c.Broker.Listeners {
		g.anonymous[l.Name] = l.AllowAnonymous
	}
	var all []config.Problem
	good := true
	take := func(key string, problems []access.Problem) {
		for _, p := range problems {
			one := config.Problem{Pos: config.Pos{File: p.File, Line: p.Line}, Text: p.Text, Warning: p.Warning}
			if p.Line == 0 {
				one.Pos, _ = c.Position("broker", key)
				one.Text = fmt.Sprintf("%s: %s: %s", key, p.File, p.Text)
			}
			all = append(all, one)
			good = good && p.Warning
		}
	}
	var problems []access.Problem
	if path := c.Broker.PasswordFile; path != "" {
		g.passwords, problems = access.ReadPasswords(path)
		take("password_file", problems)
	}
	if path := c.Broker.ACLFile; path != "" {
		g.acl, problems = access.ReadACL(path)
		take("acl_file", problems)
	}
	if !good {
		return nil, all
	}
	if g.acl != nil {
		all = append(all, g.doubts(c)...)
	}
	return g, all
}

// doubts are warnings of what an acl_file says about others.
func (g *guard) doubts(c *config.Config) (all []config.Problem) {
	warn := func(line int, format string, args ...any) {
		all = append(all, config.Problem{Pos: config.Pos{File: c.Broker.ACLFile, Line: line}, Text: fmt.Sprintf(format, args...), Warning: true})
	}
	certificates := slices.ContainsFunc(c.Broker.Listeners, func(l config.Listener) bool { return l.TLS != nil && l.TLS.Identity != "" })
	if c.Broker.JWT == nil && !certificates {
		for user, line := range g.acl.Users() {
			switch {
			case g.passwords == nil:
				warn(line, "nobody can have the user name %q, for there is no password_file; without one, user names are not believed", user)
			case !g.passwords.Has(user):
				warn(line, "nobody can have the user name %q; give it a password: fieldferry passwd %s %s", user, c.Broker.PasswordFile, user)
			}
		}
	}
	devices := make(map[string]bool)
	for i := range c.Adapters {
		for j := range c.Adapters[i].Devices {
			devices[c.Adapters[i].Devices[j].ID] = true
		}
	}
	for _, grant := range g.acl.Grants() {
		switch {
		case grant.Everyone:
			warn(grant.Line, "this gives every client the right to all topics; give it the ones it needs, as in devices/%%u/#")
		case grant.User == "":
			warn(grant.Line, "this gives clients without a name the right to all topics; give them the ones they need")
		case devices[grant.User]:
			warn(grant.Line, "this gives the device %s the right to all topics; devices/%s/# is enough for a device", grant.User, grant.User)
		}
	}
	slices.SortStableFunc(all, func(a, b config.Problem) int { return cmp.Compare(a.Line, b.Line) })
	return all
}

// guards reports whether there is more to say than whom a listener lets in.
func (g *guard) guards() bool { return g.passwords != nil || g.acl != nil }

// Authenticate implements localbroker.Access. A user name counts only if a certificate
// or a password_file proves it; without, who gives a name is a client without.
func (g *guard) Authenticate(ctx context.Context, l *localbroker.Login) (localbroker.Rights, error) {
	user := ""
	switch {
	case l.Verified:
		user = l.Username
	case g.passwords != nil && l.HasUsername:
		ok, err := g.passwords.Check(ctx, l.Username, l.Password)
		if err != nil {
			return nil, packet.Errorf(packet.ServerBusy, "its password was not checked in time: %v", err)
		}
		if !ok {
			return nil, packet.Errorf(packet.BadUserNameOrPassword, "the user name or the password is wrong")
		}
		user = l.Username
	case !g.anonymous[l.Listener] && (!l.Certificate || g.passwords != nil):
		return nil, packet.Errorf(packet.NotAuthorized, "listener %q lets nobody in without a user name and password", l.Listener)
	}
	if g.acl == nil {
		return access.Everything{}, nil
	}
	return g.acl.Rights(l.ClientID, user), nil
}

// Recall implements localbroker.Recaller: what a client may do by the access list as
// it is now. Its password was checked when it connected.
func (g *guard) Recall(username, clientID string) localbroker.Rights {
	switch {
	case g.acl == nil:
		return access.Everything{}
	case g.passwords == nil:
		username = "" // as in Authenticate
	}
	return g.acl.Rights(clientID, username)
}

var _ localbroker.Recaller = (*guard)(nil)
