// Package modbus reads and writes devices over Modbus: TCP, TLS, UDP, and serial
// lines with or without a network before them.
//
// A [Link] owns one connection and the units behind it. It merges the points of
// a device into as few requests as the limits allow, polls each rate on time
// and turns registers into values. Where frames carry transaction numbers they are
// those of github.com/simonvetter/modbus, and after any error that is not the
// device's own exception the connection is made anew, because what arrives on the
// old one can no longer be told apart. Frames of a serial line are its own; a late
// answer is told from one that is due by what else is asked (see line).
//
// A [Client] asks and writes without polling.
package modbus
