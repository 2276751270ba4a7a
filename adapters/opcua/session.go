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
	"net"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/gopcua/opcua/id"
	"github.com/gopcua/opcua/ua"
	"github.com/gopcua/opcua/uapolicy"
)

// A session is one at a server, over a channel of its own. OPC UA Part 4 §5.7.
type session struct {
	ch     *channel
	token  *ua.NodeID // that goes with every request
	nonce  []byte     // of the server, to sign when the session is taken up again
	limits limits
	certs  []Certificate

	timeout time.Duration // that the server keeps it when we ask for nothing

	mu    sync.Mutex            // guards what follows
	uris  []string              // of the namespaces
	types map[string]variable   // of what was written, by node id
	args  map[string][]variable // of the methods that were called
}

// limits are what one request may ask of a server; 0 is not known. OPC UA Part 5
// §6.3.11.
type limits struct{ read, browse, monitor uint32 }

// A Certificate is one that a link depends on.
type Certificate struct {
	What  string // for people
	Until time.Time
}

// orphan is a session that was lost with its connection and may still be kept by the
// server.
type orphan struct {
	token *ua.NodeID
	nonce []byte
}

// ask sends a request of a session and returns the answer of its type.
func ask[R ua.Response](ctx context.Context, ch *channel, token *ua.NodeID, req ua.Request) (R, error) {
	var none R
	res, err := ch.call(ctx, req, token)
	if err != nil {
		return none, err
	}
	r, ok := res.(R)
	if !ok {
		return none, fmt.Errorf("the server answers %T with %T", req, res)
	}
	return r, nil
}

// target is where a server is.
type target struct {
	url     string
	address string // host:port
	host    string
}

func parseEndpoint(endpoint string) (target, error) {
	u, err := url.Parse(endpoint)
	if err != nil || u.Scheme != "opc.tcp" || u.Hostname() == "" {
		return target{}, fmt.Errorf("%q is no address of an OPC UA server; write one such as opc.tcp://10.0.0.1:4840", endpoint)
	}
	port := u.Port()
	if port == "" {
		port = "4840" // IANA: opcua-tcp
	}
	return target{url: endpoint, host: u.Hostname(), address: net.JoinHostPort(u.Hostname(), port)}, nil
}

// endpoints asks a server what it offers, and whom.
func endpoints(ctx context.Context, t target, timeout time.Duration) ([]*ua.EndpointDescription, error) {
	ch, err := openChannel(ctx, t.address, t.url, security{policy: ua.SecurityPolicyURINone, mode: ua.MessageSecurityModeNone}, timeout)
	if err != nil {
		return nil, err
	}
	defer ch.close()
	res, err := ask[*ua.GetEndpointsResponse](ctx, ch, nil, &ua.GetEndpointsRequest{EndpointURL: t.url, LocaleIDs: []string{}, ProfileURIs: []string{}})
	if err != nil {
		return nil, fmt.Errorf("cannot ask for the endpoints: %w", err)
	}
	return res.Endpoints, nil
}

// A ConfigError says that a server does not offer, or does not take, what the
// configuration says: trying again does not change that.
type ConfigError struct {
	Text string
	wait time.Duration // before it is tried again
}

func (e *ConfigError) Error() string { return e.Text }

func unfit(format string, args ...any) error {
	return &ConfigError{fmt.Sprintf(format, args...), unfitWait}
}

// refusedUser says that the server refused who we are, and not to try that often:
// accounts get locked.
func refusedUser(format string, args ...any) error {
	return &ConfigError{fmt.Sprintf(format, args...), refusedWait}
}

var modes = map[string]ua.MessageSecurityMode{
	"": ua.MessageSecurityModeNone, "None": ua.MessageSecurityModeNone, "Sign": ua.MessageSecurityModeSign, "SignAndEncrypt": ua.MessageSecurityModeSignAndEncrypt,
}

var modeNames = map[ua.MessageSecurityMode]string{
	ua.MessageSecurityModeNone: "None", ua.MessageSecurityModeSign: "Sign", ua.MessageSecurityModeSignAndEncrypt: "SignAndEncrypt",
}

const policyPrefix = "http://opcfoundation.org/UA/SecurityPolicy#"

func policyURI(name string) string {
	if name == "" {
		name = "None"
	}
	return policyPrefix + name
}

// choose returns the endpoint with just the policy and mode that are wanted: nothing
// that is said before the server is known may lower them.
func choose(all []*ua.EndpointDescription, policy, mode string) (*ua.EndpointDescription, error) {
	var offered []string
	for _, e := range all {
		if e.TransportProfileURI != "" && !strings.HasSuffix(e.TransportProfileURI, "/uatcp-uasc-uabinary") {
			continue
		}
		if e.SecurityPolicyURI == policyURI(policy) && e.SecurityMode == modes[mode] {
			return e, nil
		}
		offered = append(offered, strings.TrimPrefix(e.SecurityPolicyURI, policyPrefix)+"/"+modeNames[e.SecurityMode])
	}
	if offered == nil {
		return nil, unfit("the server lists no endpoint for this address: write opcua: with the host that it knows itself by")
	}
	return nil, unfit("the server does not offer %s/%s, but %s: switch it on there, or change security: in the site file",
		strings.TrimPrefix(policyURI(policy), policyPrefix), modeNames[modes[mode]], strings.Join(offered, ", "))
}

// userToken is how we say who we are.
type userToken struct {
	policy   *ua.UserTokenPolicy
	password string
	id       *identity
}

// chooseToken finds how the endpoint takes our user.
func chooseToken(e *ua.EndpointDescription, u *User) (t userToken, err error) {
	want, name := ua.UserTokenTypeAnonymous, "anonymous users"
	switch {
	case u == nil:
	case u.Cert != "":
		want, name = ua.UserTokenTypeCertificate, "users with a certificate"
	default:
		want, name = ua.UserTokenTypeUserName, "users with name and password"
	}
	for _, p := range e.UserIdentityTokens {
		if p.TokenType != want {
			continue
		}
		policy := p.SecurityPolicyURI
		if policy == "" {
			policy = e.SecurityPolicyURI
		}
		switch policy {
		case policyURI("None"), policyURI("Basic256Sha256"), policyURI("Aes128_Sha256_RsaOaep"), policyURI("Aes256_Sha256_RsaPss"):
		default:
			continue // broken, or unknown
		}
		if policy == policyURI("None") && want != ua.UserTokenTypeAnonymous {
			continue // a password would go in clear, and a certificate would prove nothing
		}
		t.policy = &ua.UserTokenPolicy{PolicyID: p.PolicyID, TokenType: want, SecurityPolicyURI: policy}
		break
	}
	if t.policy == nil {
		hint := "change user: in the site file"
		if want == ua.UserTokenTypeUserName {
			hint = "a password is sent encrypted only; " + hint
		}
		return t, unfit("this endpoint of the server does not take %s: allow them there, or %s", name, hint)
	}
	if u == nil {
		return t, nil
	}
	if u.Cert != "" {
		t.id, err = loadIdentity(u.Cert, u.Key)
	} else if u.Password != nil {
		t.password, err = u.Password()
	}
	return t, err
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
	var certs []Certificate
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
		certs = append(certs, Certificate{"our certificate " + c.Cert, id.cert.NotAfter})
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
		certs = append(certs, Certificate{"the server's certificate", cert.NotAfter})
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
	if e.Server != nil {
		req.ServerURI = e.Server.ApplicationURI
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

// namespaces returns the URIs of the server's namespaces.
func (s *session) namespaces() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.uris
}

func valueOf(i uint32) *ua.ReadValueID {
	return &ua.ReadValueID{NodeID: ua.NewNumericNodeID(0, i), AttributeID: ua.AttributeIDValue, DataEncoding: &ua.QualifiedName{}}
}

// learnLimits asks for the limits and the namespaces of the server.
func (s *session) learnLimits(ctx context.Context) error {
	var nodes []*ua.ReadValueID
	for _, i := range []uint32{
		id.Server_ServerCapabilities_OperationLimits_MaxNodesPerRead,
		id.Server_ServerCapabilities_OperationLimits_MaxNodesPerBrowse,
		id.Server_ServerCapabilities_OperationLimits_MaxMonitoredItemsPerCall,
	} {
		nodes = append(nodes, valueOf(i))
	}
	values, err := s.readAll(ctx, nodes)
	if errors.Is(err, statusError{ua.StatusBadTooManyOperations}) { // not even three
		s.limits.read = 1
		values, err = s.readAll(ctx, nodes)
	}
	if err != nil {
		return fmt.Errorf("cannot ask for the limits of the server: %w", err)
	}
	for i, to := range []*uint32{&s.limits.read, &s.limits.browse, &s.limits.monitor} {
		if n, ok := valueAs[uint32](values[i]); ok {
			*to = n
		}
	}
	return s.learnNamespaces(ctx)
}

func (s *session) learnNamespaces(ctx context.Context) error {
	res, err := ask[*ua.ReadResponse](ctx, s.ch, s.token, namespacesRequest())
	if err != nil {
		return fmt.Errorf("cannot ask for the namespaces: %w", err)
	}
	s.setNamespaces(res.Results)
	return nil
}

func namespacesRequest() *ua.ReadRequest {
	return &ua.ReadRequest{TimestampsToReturn: ua.TimestampsToReturnNeither, NodesToRead: []*ua.ReadValueID{valueOf(id.Server_NamespaceArray)}}
}

// setNamespaces takes what was read of them.
func (s *session) setNamespaces(values []*ua.DataValue) {
	if len(values) != 1 {
		return
	}
	uris, _ := valueAs[[]string](values[0])
	s.mu.Lock()
	defer s.mu.Unlock()
	s.uris = uris
}

// readAll reads in as many requests as the limits want. Every node has an answer.
func (s *session) readAll(ctx context.Context, nodes []*ua.ReadValueID) ([]*ua.DataValue, error) {
	var requests []ua.Request
	for part := range chunks(nodes, s.limits.read, readNodes) {
		requests = append(requests, &ua.ReadRequest{TimestampsToReturn: ua.TimestampsToReturnBoth, NodesToRead: part})
	}
	answers, err := s.askAll(ctx, requests)
	if err != nil {
		return nil, err
	}
	var all []*ua.DataValue
	for i, a := range answers {
		res, ok := a.(*ua.ReadResponse)
		if part := requests[i].(*ua.ReadRequest).NodesToRead; !ok || len(res.Results) != len(part) {
			return nil, fmt.Errorf("the server answers a read of %d nodes with %T", len(part), a)
		}
		all = append(all, res.Results...)
	}
	return all, nil
}

// readNodes are read with one request at most, and inFlight requests sent before the
// first is answered: a server that answers one after the other need not wait for us.
const (
	readNodes = 500
	inFlight  = 4
)

// askAll sends requests and returns their answers, in order.
func (s *session) askAll(ctx context.Context, requests []ua.Request) ([]ua.Response, error) {
	answers := make([]ua.Response, len(requests))
	to := make(chan answer, inFlight)
	at := map[uint32]int{}
	timer := time.NewTimer(s.ch.timeout)
	defer timer.Stop()
	for next, left := 0, len(requests); left > 0; {
		for next < len(requests) && len(at) < inFlight {
			id, err := s.ch.send(requests[next], s.token, s.ch.timeout, to)
			if err != nil {
				return nil, err
			}
			at[id] = next
			next++
		}
		select {
		case a := <-to:
			if a.err != nil {
				return nil, a.err
			}
			answers[at[a.id]] = a.res
			delete(at, a.id)
			left--
			timer.Reset(s.ch.timeout)
		case <-timer.C:
			return nil, errNoAnswer
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return answers, nil
}

// chunks yields a list in parts that a limit allows.
func chunks[T any](list []T, limit uint32, most int) func(yield func([]T) bool) {
	if limit > 0 {
		most = min(most, int(limit))
	}
	return func(yield func([]T) bool) {
		for len(list) > 0 {
			part := list[:min(most, len(list))]
			list = list[len(part):]
			if !yield(part) {
				return
			}
		}
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

// ServerCertificate returns the certificate that a server shows, and what it calls
// itself. Nothing of that is verified.
func ServerCertificate(ctx context.Context, endpoint string) (*x509.Certificate, string, error) {
	t, err := parseEndpoint(endpoint)
	if err != nil {
		return nil, "", err
	}
	all, err := endpoints(ctx, t, answerTimeout)
	if err != nil {
		return nil, "", err
	}
	for _, e := range all {
		if c, err := x509.ParseCertificate(firstCertificate(e.ServerCertificate)); err == nil {
			name := ""
			if e.Server != nil {
				name = e.Server.ApplicationURI
			}
			return c, name, nil
		}
	}
	return nil, "", errors.New("the server shows no certificate; it may offer no security")
}

// CheckServer says whether a certificate that the server at an endpoint shows is
// trusted, as [Trust.Check] has it.
func CheckServer(t Trust, c *x509.Certificate, uri, endpoint string) error {
	at, err := parseEndpoint(endpoint)
	if err != nil {
		return err
	}
	_, err = t.Check(c.Raw, uri, at.host, time.Now())
	return err
}
