package config

import (
	"net/url"
	"regexp"
	"strings"
	"time"
)

func (d *decoder) opcua(o *object) *OPCUA {
	u := &OPCUA{
		Pos:      o.pos("opcua"),
		Endpoint: o.text("opcua", ""),
		Poll:     o.enum("read", "subscribe", "subscribe", "poll") == "poll",
		Policy:   "None",
		Mode:     "None",
	}
	if u.Endpoint != "" {
		at, s := o.valuePos("opcua"), o.n.value("opcua").quote()
		e, err := url.Parse(u.Endpoint)
		if err != nil || e.Scheme != "opc.tcp" {
			d.problem(at, "opcua: expected one such as opc.tcp://10.0.0.1:4840, found %s", s)
		} else if _, wrong := hostPort(e.Host, false); wrong != "" {
			d.problem(at, "opcua: %s %s; write one such as opc.tcp://10.0.0.1:4840", s, wrong)
		} else if e.User != nil {
			d.problem(at, "opcua: a URL is no place for a password; write user: {name: …, password: …}")
		}
	}
	d.opcuaSecurity(o.object("security"), u)
	if user := o.object("user"); user.there() {
		u.User = d.opcuaUser(user, u)
	}
	if u.Policy == "None" && !o.has("security") {
		d.warn(u.Pos, "opcua without security: values can be read and changed on the way; add security: {policy: Basic256Sha256, mode: SignAndEncrypt, …}")
	}
	return u
}

// securityPolicies are those that are not known to be broken, OPC UA Part 7 §6.6.
var securityPolicies = []string{"None", "Basic256Sha256", "Aes128_Sha256_RsaOaep", "Aes256_Sha256_RsaPss"}

func (d *decoder) opcuaSecurity(o *object, u *OPCUA) {
	if !o.there() {
		return
	}
	n := o.scalar("policy", "a security policy")
	switch {
	case n != nil && (n.text == "Basic128Rsa15" || n.text == "Basic256"):
		d.problem(n.pos(), "policy: %s is broken; use Basic256Sha256", n.text)
		u.Policy = ""
	case n != nil:
		u.Policy = o.enum("policy", "", securityPolicies...)
	}
	if !o.has("policy") {
		u.Policy = "Basic256Sha256"
	}
	def := "SignAndEncrypt"
	if u.Policy == "None" {
		def = "None"
	}
	u.Mode = o.enum("mode", def, "None", "Sign", "SignAndEncrypt")
	if u.Policy != "" && (u.Policy == "None") != (u.Mode == "None") {
		d.problem(o.at, "security: policy %s and mode %s do not go together; write both None or neither", u.Policy, u.Mode)
	}
	secure := u.Policy != "None"
	u.Trust = o.path("trust")
	u.Cert, u.Key = d.keyPair(o, secure)
	if secure {
		o.need("trust", "trust is missing; write the folder with the certificates of servers to trust")
	}
	o.done()
}

func (d *decoder) opcuaUser(o *object, u *OPCUA) *OPCUAUser {
	user := &OPCUAUser{Pos: o.at, Name: o.text("name", ""), Password: o.secret("password")}
	user.Cert, user.Key = d.keyPair(o, false)
	switch {
	case o.has("name") && o.has("cert"):
		d.problem(o.pos("cert"), "a user has a name or a certificate; remove one")
	case o.has("cert"):
	case o.has("name"):
		o.need("password", "password is missing; write \"${file:PATH}\"")
	default:
		o.need("name", "the user has neither name nor cert; add one, or remove user for an anonymous one")
	}
	if o.has("password") && u.Policy == "None" {
		d.problem(o.pos("password"), "password: without security it would be sent in clear; add security: {policy: Basic256Sha256, …}")
	}
	o.done()
	return user
}

// opcua reads what a device has beside its points.
func (k *kitReader) opcua(o *object) {
	k.base = o.text("base", "")
	k.dev.Sampling = o.duration("sampling", k.dev.Every, time.Millisecond, 0)
}

// nodeID is a whole node id as text, OPC UA Part 6 §5.3.1.10: a namespace index or
// URI, and an identifier that is a number, a string, a GUID or base64.
var nodeID = regexp.MustCompile(`^(ns=[0-9]+;|nsu=[^;]+;)?(i=[0-9]+|s=.+|g=[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}|b=[A-Za-z0-9+/]+=*)$`)

// looksWhole tells a node id, even a wrong one, from what is appended to a base.
var looksWhole = regexp.MustCompile(`^(ns|nsu|i|s|g|b)=`)

func (k *kitReader) opcuaPoint(o *object) (*OPCUAPoint, shape) {
	p := &OPCUAPoint{Node: k.node(o, "node"), Call: k.node(o, "call"), Object: k.node(o, "object")}
	s := shape{numeric: true, integer: true}
	switch {
	case o.has("node") && o.has("call"):
		k.problem(o.pos("call"), "the point has node and call; make two points of it")
	case o.has("call"):
		o.need("object", "call needs object: with the node that has the method")
		return p, shape{fixed: true, why: "a method"}
	case !o.has("node"):
		o.needOneOf([]string{"node", "call"}, k.misplaced(), "the point does not say where it is; add node:, or call: for a method")
	}
	if o.has("object") && !o.has("call") {
		k.problem(o.pos("object"), "object is for methods; remove it, or write call: instead of node:")
	}
	return p, s
}

// node reads a node id, or what makes one with the base.
func (k *kitReader) node(o *object, key string) string {
	s := o.text(key, "")
	if s == "" {
		return ""
	}
	id, n := s, o.n.value(key)
	if !looksWhole.MatchString(s) {
		id = k.base + s
	}
	if nodeID.MatchString(id) {
		return id
	}
	switch {
	case k.base == "" && id == s && !looksWhole.MatchString(s):
		k.problem(n.pos(), "%s: %s is no node id, and the device has no base to append it to; write one such as ns=2;s=Pump.Speed", key, n.quote())
	case strings.HasPrefix(id, k.base) && k.base != "":
		k.problem(n.pos(), "%s: %s is no node id; write one such as ns=2;s=Pump.Speed", key, quote(id))
	default:
		k.problem(n.pos(), "%s: %s is no node id; write one such as ns=2;s=Pump.Speed", key, n.quote())
	}
	return ""
}
