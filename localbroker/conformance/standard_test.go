package conformance

import (
	"strings"
	"testing"

	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// A clause is what a broker has to do, and the numbered statements that say so:
// "3.1.2-4 3.2.2-2" are [MQTT-3.1.2-4] and [MQTT-3.2.2-2], "§3.8.3.1" is a
// section without a number. It runs in each version that it names statements of.
type clause struct {
	says string
	v5   string
	v311 string
	site *site // nil is plain
	ours bool  // a SHOULD or MAY that we hold ourselves to, and others need not
	run  func(*scene)
}

var chapters = []struct {
	name    string
	clauses []clause
}{
	{"connect", connectClauses},
	{"connect properties", connectPropertyClauses},
	{"session", sessionClauses},
	{"publish", publishClauses},
	{"properties", propertyClauses},
	{"alias", aliasClauses},
	{"expiry", expiryClauses},
	{"qos 1", qos1Clauses},
	{"qos 2 in", qos2InClauses},
	{"qos 2 out", qos2OutClauses},
	{"retained", retainedClauses},
	{"subscribe", subscribeClauses},
	{"unsubscribe", unsubscribeClauses},
	{"topic", topicClauses},
	{"shared", sharedClauses},
	{"will", willClauses},
	{"flow", flowClauses},
	{"size", sizeClauses},
	{"disconnect", disconnectClauses},
	{"access", accessClauses},
	{"limits", limitClauses},
}

// TestStandard holds the broker to every clause, in each version.
func TestStandard(t *testing.T) {
	for _, chapter := range chapters {
		t.Run(chapter.name, func(t *testing.T) {
			t.Parallel()
			for _, c := range chapter.clauses {
				if c.v5 != "" {
					c.test(t, packet.V5)
				}
				if c.v311 != "" {
					c.test(t, packet.V311)
				}
			}
		})
	}
}

func (c *clause) test(t *testing.T, v packet.Version) {
	name := c.says + "/5"
	if v == packet.V311 {
		name = c.says + "/3.1.1"
	}
	t.Run(name, func(t *testing.T) {
		t.Parallel()
		mayDiffer(t, c.ours)
		where := plain
		if c.site != nil {
			where = c.site
		}
		c.run(stage(t, v, where.shared))
	})
}

// statements are the numbered ones among those that a clause names.
func statements(of string) []string {
	var ids []string
	for _, id := range strings.Fields(of) {
		if !strings.HasPrefix(id, "§") {
			ids = append(ids, id)
		}
	}
	return ids
}
