// Package opcua reads and writes the devices of OPC UA servers.
//
// A [Link] is one server: it keeps one session there, subscribes to the variables
// of all devices, or polls them, and makes readings of what it is told. A value is
// shown as good only while the server is heard from and says that it is.
//
// The types, their encoding and the algorithms of the security policies are those
// of github.com/gopcua/opcua. The secure channel and the session are our own: the
// library's client takes the certificate of whoever answers, sends a password in
// clear where a server asks for that, says nothing when a server falls silent, and
// decodes in goroutines of its own, where a panic is the end of the process.
// What is decoded was looked through before (see wellFormed).
package opcua
