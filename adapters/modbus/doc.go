// Package modbus reads devices over Modbus TCP.
//
// A [Link] owns one connection and the units behind it. It merges the points of
// a device into as few requests as the limits allow, polls each rate on time
// and turns registers into values. The frames on the wire are those of
// github.com/simonvetter/modbus; after any error that is not the device's own
// exception the connection is made anew, because what arrives on the old one can
// no longer be told apart.
//
// It writes nothing yet, and speaks Modbus TCP alone.
package modbus
