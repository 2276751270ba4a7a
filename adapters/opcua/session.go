package opcua

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"time"

	"github.com/gopcua/opcua/ua"
	"github.com/gopcua/opcua/uapolicy"
)

// A session is one at a server, over a channel of its own. OPC UA Part 4 §5.7.
type session struct {
	ch     *channel
	token  *ua.NodeID // that goes with every request
	nonce  []byte     // of the server, to sign when the session is taken up again
	limits limits
	certs  []*x509.Certificate // that it depends on

	timeout time.Duration // that the server keeps it when we ask for nothing

	mu    sync.Mutex            // guards what follows
	uris  []string              // of the namespaces
	types map[string]variable   // of what was written, by node id
	args  map[string][]variable // of the methods that were called
}

// limits are what one request may ask of a server; 0 is not known. OPC UA Part 5
// §6.3.11.
type limits struct{ read, browse, monitor uint32 }

// orphan is a session that was lost with its connection and may still be kept by the
// server.
type orphan struct {
	token *ua.NodeID
	nonce []byte
}

// connect opens a session as the configuration says. It closes a session of ours that
// was lost before, so that the server does not keep it until its time is over.
func connect(ctx context.Context, c *Config, old *orphan) (*session, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, connectTimeout, errNoAnswer)
	defer cancel()
	t, err := parseEndpoint(c.Endpoint)
	if err != nil {
		return nil, err
	}
	sec := security{policy: policyURI(c.Policy), mode: modes[c.Mode], life: c.life}
	var certs []*x509.Certificate
	uri := ApplicationURI(c.Gateway)
	if c.secure() {
		id, _, err := ensureIdentity(c.Cert, c.Key, c.Gateway, time.Now())
		if err != nil {
			return nil, err
		}
		if id.uri() == "" {
			return nil, unfit("our certificate %s has no URI, and servers refuse such ones: make one with a URI, or remove it and its key and have one made", c.Cert)
		}
		if now := time.Now(); now.After(id.cert.NotAfter) {
			return nil, unfit("our certificate %s has expired on %s: remove it and its key and have new ones made, then trust the new one at the server", c.Cert, id.cert.NotAfter.UTC().Format(time.RFC3339))
		}
		sec.cert, sec.key, uri = id.cert.Raw, id.key, id.uri()
		certs = append(certs, id.cert)
	}
	all, err := endpoints(ctx, t, c.Timeout)
	if err != nil {
		return nil, err
	}
	e, err := choose(all, c.Policy, c.Mode)
	if err != nil {
		return nil, err
	}
	if sec.on() {
		app := ""
		if e.Server != nil {
			app = e.Server.ApplicationURI
		}
		cert, err := c.Trust.Check(e.ServerCertificate, app, t.host, time.Now())
		if err != nil {
			var untrusted *TrustError
			if errors.As(err, &untrusted) {
				err = errors.Join(err, c.Trust.Reject(e.ServerCertificate))
			}
			return nil, err
		}
		sec.server, sec.serverKey = cert.Raw, cert.PublicKey.(*rsa.PublicKey)
		certs = append(certs, cert)
	}
	token, err := chooseToken(e, c.User)
	if err != nil {
		return nil, err
	}
	ch, err := openChannel(ctx, t.address, endpointURL(e, t), sec, c.Timeout)
	if err != nil {
		return nil, explainChannel(err, c)
	}
	s := &session{ch: ch, certs: certs, types: map[string]variable{}, args: map[string][]variable{}}
	if old != nil {
		s.bury(ctx, c, token, old)
	}
	if err := s.begin(ctx, c, e, token, uri, t); err != nil {
		s.close(closeTimeout)
		return nil, err
	}
	return s, nil
}

// endpointURL is the URL of an endpoint, with the host that we know the server by:
// what a server calls itself is often not to be reached.
func endpointURL(e *ua.EndpointDescription, t target) string {
	u, err := url.Parse(e.EndpointURL)
	if err != nil || u.Scheme != "opc.tcp" {
		return t.url
	}
	u.Host = t.address
	return u.String()
}

// explainChannel says what a refused channel means.
func explainChannel(err error, c *Config) error {
	if !c.secure() {
		return err
	}
	for _, s := range []ua.StatusCode{ua.StatusBadSecurityChecksFailed, ua.StatusBadCertificateUntrusted, ua.StatusBadCertificateInvalid, ua.StatusBadCertificateChainIncomplete} {
		if errors.Is(err, statusError{s}) {
			return unfit("the server does not accept our certificate %s: trust it there (%v)", c.Cert, err)
		}
	}
	return err
}

// begin creates and activates the session, and asks what is to be known of the server.
func (s *session) begin(ctx context.Context, c *Config, e *ua.EndpointDescription, token userToken, uri string, t target) error {
	ch := s.ch
	nonce := make([]byte, 32) // OPC UA Part 4 §5.7.2.2
	rand.Read(nonce)          // never fails
	req := &ua.CreateSessionRequest{
		ClientDescription: &ua.ApplicationDescription{
			ApplicationURI: uri, ProductURI: "https://github.com/fieldferry/fieldferry",
			ApplicationName: ua.NewLocalizedText("Fieldferry " + c.Gateway), ApplicationType: ua.ApplicationTypeClient, DiscoveryURLs: []string{},
		},
		EndpointURL: endpointURL(e, t), SessionName: "fieldferry " + c.Gateway + " " + c.Name, ClientNonce: nonce, ClientCertificate: ch.sec.cert,
		RequestedSessionTimeout: float64(sessionTimeout / time.Millisecond), MaxResponseMessageSize: maxMessage,
	}
	res, err := ask[*ua.CreateSessionResponse](ctx, ch, nil, req)
	if err != nil {
		return fmt.Errorf("cannot begin a session: %w", err)
	}
	s.token, s.nonce = res.AuthenticationToken, res.ServerNonce
	s.timeout = sessionTimeout
	if ms := res.RevisedSessionTimeout; ms >= 100 && ms < 1e9 {
		s.timeout = time.Duration(ms * float64(time.Millisecond))
	}
	if ch.sec.on() {
		if !bytes.Equal(firstCertificate(res.ServerCertificate), ch.sec.server) || res.ServerSignature == nil ||
			ch.asym.VerifySignature(append(bytes.Clone(ch.sec.cert), nonce...), res.ServerSignature.Signature) != nil {
			return errForged
		}
		// What was offered before the server was known may have been another's offer.
		// OPC UA Part 4 §5.7.2.1.
		if _, err := choose(res.ServerEndpoints, c.Policy, c.Mode); err != nil && len(res.ServerEndpoints) > 0 {
			return fmt.Errorf("the server offers something else than it did before it was known: %w", err)
		}
	}
	if err := s.activate(ctx, token, c); err != nil {
		return err
	}
	return s.learnLimits(ctx)
}

// activate says who we are.
func (s *session) activate(ctx context.Context, token userToken, c *Config) error {
	ch := s.ch
	req := &ua.ActivateSessionRequest{
		ClientSignature: &ua.SignatureData{}, ClientSoftwareCertificates: []*ua.SignedSoftwareCertificate{}, LocaleIDs: []string{"en"}, UserTokenSignature: &ua.SignatureData{},
	}
	if ch.sec.on() {
		sig, err := ch.asym.Signature(append(bytes.Clone(ch.sec.server), s.nonce...))
		if err != nil {
			return err
		}
		req.ClientSignature = &ua.SignatureData{Algorithm: ch.asym.SignatureURI(), Signature: sig}
	}
	switch token.policy.TokenType {
	case ua.UserTokenTypeUserName:
		secret, uri, err := sealPassword(token, &ch.sec, s.nonce)
		if err != nil {
			return err
		}
		req.UserIdentityToken = ua.NewExtensionObject(&ua.UserNameIdentityToken{PolicyID: token.policy.PolicyID, UserName: c.User.Name, Password: secret, EncryptionAlgorithm: uri})
	case ua.UserTokenTypeCertificate:
		algo, err := uapolicy.Asymmetric(token.policy.SecurityPolicyURI, token.id.key, ch.sec.serverKey)
		if err != nil {
			return err
		}
		sig, err := algo.Signature(append(bytes.Clone(ch.sec.server), s.nonce...))
		if err != nil {
			return err
		}
		req.UserIdentityToken = ua.NewExtensionObject(&ua.X509IdentityToken{PolicyID: token.policy.PolicyID, CertificateData: token.id.cert.Raw})
		req.UserTokenSignature = &ua.SignatureData{Algorithm: algo.SignatureURI(), Signature: sig}
	default:
		req.UserIdentityToken = ua.NewExtensionObject(&ua.AnonymousIdentityToken{PolicyID: token.policy.PolicyID})
	}
	res, err := ask[*ua.ActivateSessionResponse](ctx, ch, s.token, req)
	if err != nil {
		for _, st := range []ua.StatusCode{ua.StatusBadUserAccessDenied, ua.StatusBadIdentityTokenRejected, ua.StatusBadIdentityTokenInvalid, ua.StatusBadUserSignatureInvalid} {
			if errors.Is(err, statusError{st}) {
				return refusedUser("the server refuses our user: %s (%v)", userHint(token, c), err)
			}
		}
		return fmt.Errorf("cannot begin a session: %w", err)
	}
	s.nonce = res.ServerNonce
	return nil
}

func userHint(token userToken, c *Config) string {
	switch token.policy.TokenType {
	case ua.UserTokenTypeUserName:
		return fmt.Sprintf("check the name %q and its password", c.User.Name)
	case ua.UserTokenTypeCertificate:
		return "trust the certificate " + c.User.Cert + " there as that of a user"
	}
	return "it wants a user; write user: {name: …, password: …}"
}

// sealPassword encrypts a password for the server. OPC UA Part 4 §7.40.2.2.
func sealPassword(token userToken, sec *security, nonce []byte) ([]byte, string, error) {
	if sec.serverKey == nil || token.policy.SecurityPolicyURI == policyURI("None") {
		return nil, "", unfit("a password is sent encrypted only: add security: to the site file")
	}
	algo, err := uapolicy.Asymmetric(token.policy.SecurityPolicyURI, sec.key, sec.serverKey)
	if err != nil {
		return nil, "", err
	}
	secret := binary.LittleEndian.AppendUint32(nil, uint32(len(token.password)+len(nonce)))
	secret = append(append(secret, token.password...), nonce...)
	sealed, err := algo.Encrypt(secret)
	return sealed, algo.EncryptionURI(), err
}

// bury closes a session that was lost with its connection: it takes it up over this
// channel first, for only that may close it.
func (s *session) bury(ctx context.Context, c *Config, token userToken, old *orphan) {
	o := session{ch: s.ch, token: old.token, nonce: old.nonce}
	if o.activate(ctx, token, c) == nil {
		_, _ = ask[*ua.CloseSessionResponse](ctx, s.ch, old.token, &ua.CloseSessionRequest{DeleteSubscriptions: true})
	}
}

// close ends the session at the server, for which it waits so long, and the channel.
// If the server does not answer it returns what is to be closed when it does again.
func (s *session) close(wait time.Duration) *orphan {
	defer s.ch.close()
	if s.token == nil {
		return nil
	}
	if wait > 0 {
		ctx, cancel := context.WithTimeout(context.Background(), wait)
		defer cancel()
		_, err := ask[*ua.CloseSessionResponse](ctx, s.ch, s.token, &ua.CloseSessionRequest{DeleteSubscriptions: true})
		if err == nil || !unknown(err) {
			return nil
		}
	}
	return &orphan{s.token, s.nonce}
}
