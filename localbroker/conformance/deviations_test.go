package conformance

import (
	"strings"
	"testing"
)

// differs says which tests Mosquitto 2.0.11 fails, by their names, and why the
// test is right all the same.
var differs = map[string]string{
	"TestStandard/connect/a second CONNECT":                              "it drops the will, though it was not a proper end [MQTT-3.1.2-8]",
	"TestStandard/connect properties/values that are none":               "it takes authentication data without a method (§3.1.2.11.10) and a payload format of 2 (§3.1.3.2.3)",
	"TestStandard/session/the window is that of the connection":          "it sends again what was in flight, whatever the new Receive Maximum [MQTT-3.3.4-9]",
	"TestStandard/properties/values that are none":                       "it takes a payload format of 2 (§3.3.2.3.2), wildcards in a response topic [MQTT-3.3.2-14] and a subscription identifier from a client [MQTT-3.3.4-6]",
	"TestStandard/expiry/what waits for a slow client is over too":       "it stops sending when what is next has expired, and keeps back what has not [MQTT-4.5.0-1]",
	"TestStandard/expiry/what was sent once does not end":                "it drops a message in the middle of its handshake [MQTT-4.3.3-7]",
	"TestStandard/shared/filters that are none":                          "it takes group filters without a name or a filter [MQTT-4.8.2-1]",
	"TestStandard/shared/no retained messages":                           "it sends them (§4.8.2)",
	"TestStandard/will/DISCONNECT may ask for it":                        "it knows reason 0x04 only, though all but 0x00 leave the will [MQTT-3.1.2-8]",
	"TestStandard/will/a takeover ends the connection":                   "it drops the will if the session goes on, though its delay is 0 (§3.1.3.2.2, §3.1.4)",
	"TestStandard/will/a delayed one comes when its session ends before": "it does not see that a clean start ends the session (§3.1.3.2.2)",
	"TestStandard/will/DISCONNECT with will, and a session that ends":    "it does not see that the session has ended [MQTT-3.1.2-8]",
	"TestKillInStates/PUBREL has come, no PUBCOMP was sent":              "it does not save that it has sent PUBREL, and sends the message again [MQTT-4.3.3-6]",
	"TestKillInStates/a session's time goes on":                          "after a restart it does not end what is over its time [MQTT-4.1.0-2]",
	"TestStandard/flow/the broker keeps to the client's window":          "it counts wrong when QoS 1 and 2 are mixed [MQTT-4.9.0-2]",
}

// mayDiffer leaves a test out that asks more than the other broker is known to
// do. ours are those that ask more than the standards.
func mayDiffer(t *testing.T, ours bool) {
	t.Helper()
	if *peer == "fieldferry" || *deviations {
		return
	}
	if ours {
		t.Skip("asks more than the standard")
	}
	name := strings.ReplaceAll(t.Name(), "_", " ")
	for prefix, why := range differs {
		if strings.HasPrefix(name, prefix) {
			t.Skip("differs: " + why)
		}
	}
}
