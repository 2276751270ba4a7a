"""A scale that speaks MT-SICS, over pyserial: python3 scale.py PORT. Its weight counts the requests."""
import sys
import serial

port = serial.Serial(sys.argv[1], 9600, timeout=1)
n = 0
while True:
    line = port.readline()
    if line == b"SI\r\n":
        n += 1
        port.write(b"S S %10.2f g\r\n" % (n / 100))
    elif line == b"T\r\n":
        port.write(b"T S %10.2f g\r\n" % 0)
    elif line:
        port.write(b"ES\r\n")
