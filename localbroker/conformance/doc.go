// Package conformance holds the tests of the broker on the wire. They run it as a
// process of its own, talk to it over TCP, kill it, and know of it what a client
// can know: its address, its site file and the two standards.
//
// There is nothing in it but tests:
//
//   - TestStandard holds the numbered statements of MQTT 5 and MQTT 3.1.1, one
//     small test for one behaviour; statements_test.go says which statement
//     is held by no test, and why.
//   - TestMalformed sends what must not be sent.
//   - TestSituation holds what made other brokers lose, reorder or stall.
//   - TestKill ends the process without warning and asks what is left.
//
// The tests are themselves tested against another broker:
//
//	go test ./localbroker/conformance -broker mosquitto
//
// Where that one differs, deviations_test.go says how; such a test is left out
// for it unless -deviations is given.
package conformance
