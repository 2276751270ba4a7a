package opcua

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/gopcua/opcua/ua"
)

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
