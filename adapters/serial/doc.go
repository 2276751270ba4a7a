// Package serial reads devices on serial lines that speak no Modbus: scales,
// receivers, meters, scanners. A site says how their messages are framed, checked
// and read; the package guesses nothing.
//
// A [Link] is one line with every device on it, at a serial port or behind a serial
// server. Devices are asked one after the other, or talk unasked. A frame that does
// not fit is counted and kept to be looked at (see [Link.Frames]), and what follows it
// is found again.
package serial
