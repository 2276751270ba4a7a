// Package simulate serves devices that do not exist, over Modbus TCP, its other
// transports and serial lines.
//
// A [Server] has units, a unit has registers and bits, and what they hold may
// follow a [Signal] in time. Each unit can be given a [Fault]: it can be dead,
// slow or late, refuse what it is asked, or answer wrongly.
//
// It serves the functions 1 to 6, 15, 16, 22, 23 and 43/14 of the Modbus
// Application Protocol 1.1b3; any other is answered with exception 1.
package simulate
