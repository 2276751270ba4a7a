package localbroker

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/buffer/rows"
)

// What a broker has to know after a restart is a series of changes. Each stands in
// the log as a record with a copy for the state's own outbox, whose topic says what
// kind of change it is. A retained publish needs no other record than its own, so
// what makes it durable for its destinations makes it retained with the same
// commit. All but those of the gateway's own retained publishes begin with a zero byte, which
// no topic name does (MQTT 5 [MQTT-4.7.3-2]); docs/format-state.md has the bytes.
const (
	changeSession     = 's' // a client has a session, is connected or has left
	changeEnd         = 'e' // a session has ended, with its subscriptions and ids
	changeSubscribe   = '+'
	changeUnsubscribe = '-'
	changeRelease     = 'r' // a PUBREL came: the packet identifier is free again
	changeReceived    = 'R' // a PUBREC came out of turn
	changeWill        = 'w' // a client that is connected has a will
	changeNoWill      = 'x' // it took its will back, or that was published
	changePublish     = 'p' // a publish that is more than retained; see mark
)

// What a publish changes beside its destinations.
const (
	markID     = 1 << iota // its packet identifier is in use until its PUBREL
	markRetain             // it is retained
	markClient             // and known whose it is
)

// mark is the topic of a publish's copy for the state.
type mark struct {
	flags    byte
	session  uint64
	packetID uint16
	client   string
	topic    string
}

// copyTopic is the mark as a copy's topic: "" if the publish is just retained.
func (m *mark) copyTopic() string {
	if m.flags == markRetain {
		return ""
	}
	b := []byte{0, changePublish, m.flags}
	if m.flags&markID != 0 {
		b = binary.AppendUvarint(b, m.session)
		b = binary.AppendUvarint(b, uint64(m.packetID))
	}
	if m.flags&markClient != 0 {
		b = appendText(b, m.client)
	}
	if m.flags&markRetain != 0 {
		b = append(b, m.topic...)
	}
	return string(b)
}

func parseMark(topic string) (m mark, ok bool) {
	if topic == "" || topic[0] != 0 {
		return mark{flags: markRetain, topic: topic}, topic != ""
	}
	f := fields{p: []byte(topic[2:])}
	m.flags = f.byte()
	if m.flags&markID != 0 {
		m.session, m.packetID = f.uvarint(), uint16(f.uvarint())
	}
	if m.flags&markClient != 0 {
		m.client = f.text()
	}
	if m.flags&markRetain != 0 {
		m.topic = string(f.p)
	}
	return m, !f.bad
}

// changeTopic is the topic of any other change.
func changeTopic(kind byte) string { return string([]byte{0, kind}) }

// The tables of state.db.
const (
	tableAbout    = "about"
	tableApplied  = "applied"
	tableSessions = "sessions"
	tableSubs     = "subscriptions"
	tableIDs      = "ids"
	tableReceived = "received"
	tableRetained = "retained"
	tableWills    = "wills"
)

var tables = []string{tableAbout, tableApplied, tableSessions, tableSubs, tableIDs, tableReceived, tableRetained, tableWills}

// savedSession is a row of sessions.
type savedSession struct {
	client string
	id     uint64
	expiry time.Duration // after the client left
	left   bool          // the client is not connected
	since  buffer.Stamp  // when it left
}

func (s *savedSession) append(dst []byte) []byte {
	dst = binary.AppendUvarint(dst, s.id)
	dst = binary.AppendUvarint(dst, uint64(s.expiry/time.Second))
	left := byte(0)
	if s.left {
		left = 1
	}
	return appendStamp(append(dst, left), s.since)
}

func (f *fields) session(client string) savedSession {
	return savedSession{client: client, id: f.uvarint(), expiry: time.Duration(f.uvarint()) * time.Second, left: f.byte() == 1, since: f.stamp()}
}

func appendStamp(dst []byte, s buffer.Stamp) []byte {
	return binary.AppendVarint(binary.BigEndian.AppendUint64(dst, s.Boot), int64(s.Uptime))
}

func (f *fields) stamp() (s buffer.Stamp) {
	if len(f.p) < 8 {
		f.p, f.bad = nil, true
		return s
	}
	s.Boot = binary.BigEndian.Uint64(f.p)
	f.p = f.p[8:]
	s.Uptime = time.Duration(f.varint())
	return s
}

// savedSubscription is a row of subscriptions.
type savedSubscription struct {
	filter string
	flags  byte // bits 0-1 QoS, 2 no local, 3 retain as published
	id     uint32
}

func (s *savedSubscription) append(dst []byte) []byte {
	return binary.AppendUvarint(append(dst, s.flags), uint64(s.id))
}

// savedMessage is a retained message or a will.
type savedMessage struct {
	Message
	since buffer.Stamp  // when it was published
	delay time.Duration // of a will
	user  string        // whose will it is; of a retained message the client id of its publisher
	id    uint64        // of a will
}

func (m *savedMessage) append(dst []byte) []byte {
	flags := m.QoS
	if m.Retain {
		flags |= 4
	}
	dst = append(dst, flags)
	dst = appendStamp(dst, m.since)
	dst = binary.AppendUvarint(dst, uint64(m.Expiry.Milliseconds()))
	dst = binary.AppendUvarint(dst, uint64(m.delay/time.Second))
	dst = binary.AppendUvarint(dst, m.id)
	dst = appendText(dst, m.user)
	dst = appendText(dst, m.Topic)
	dst = appendText(dst, m.Props)
	return append(dst, m.Payload...)
}

func (f *fields) message() (m savedMessage) {
	flags := f.byte()
	m.QoS, m.Retain = flags&3, flags&4 != 0
	m.since = f.stamp()
	m.Expiry = time.Duration(f.uvarint()) * time.Millisecond
	m.delay = time.Duration(f.uvarint()) * time.Second
	m.id = f.uvarint()
	m.user = f.text()
	m.Topic = f.text()
	m.Props = f.bytes()
	m.Payload = f.p
	f.p = nil
	return m
}

// longestName is the longest name that is its own key: a key of bbolt has at most 32,768
// bytes, and a name of MQTT up to 65,535.
const longestName = 32_000

// nameKey is the key of a topic name or filter, which the row's value has, too.
func nameKey(prefix []byte, name string) []byte {
	if len(name) <= longestName {
		return append(prefix, name...)
	}
	sum := sha256.Sum256([]byte(name))
	return append(append(prefix, 0), sum[:]...) // no name begins with that
}

// idKey is the key of a packet identifier that is in use. The class is a part of it:
// changes of several are not applied in the order in which they came, so the release
// of one publish must not be that of another.
func idKey(session uint64, packetID uint16, class buffer.Class) []byte {
	return append(binary.BigEndian.AppendUint16(sessionPrefix(session), packetID), byte(class))
}

func sessionPrefix(id uint64) []byte { return binary.BigEndian.AppendUint64(nil, id) }

// apply makes one change to the tables.
func apply(tx rows.Tx, d *buffer.Delivery, stamp func(ago time.Duration) buffer.Stamp) error {
	if strings.HasPrefix(d.Topic, "\x00") && len(d.Topic) < 2 {
		return fmt.Errorf("change %q: malformed", d.Topic)
	}
	if d.Topic == "" || d.Topic[0] != 0 || d.Topic[1] == changePublish {
		return applyPublish(tx, d, stamp)
	}
	f := fields{p: d.Payload}
	var err error
	switch d.Topic[1] {
	case changeSession:
		s := f.session(f.text())
		if f.bad {
			break
		}
		key := []byte(s.client)
		if old := (&fields{p: tx.Get(tableSessions, key)}).session(s.client); old.id != s.id {
			err = endSession(tx, old.id)
		}
		if err == nil {
			err = tx.Put(tableSessions, key, s.append(nil))
		}
	case changeEnd:
		client, id := f.text(), f.uvarint()
		if old := (&fields{p: tx.Get(tableSessions, []byte(client))}).session(client); old.id == id && !f.bad {
			err = tx.Delete(tableSessions, []byte(client))
		}
		if err == nil {
			err = endSession(tx, id)
		}
	case changeSubscribe:
		for id := f.uvarint(); f.more() && err == nil; {
			s := savedSubscription{filter: f.text(), flags: f.byte(), id: uint32(f.uvarint())}
			if !f.bad {
				err = tx.Put(tableSubs, nameKey(sessionPrefix(id), s.filter), appendText(s.append(nil), s.filter))
			}
		}
	case changeUnsubscribe:
		for id := f.uvarint(); f.more() && err == nil; {
			err = tx.Delete(tableSubs, nameKey(sessionPrefix(id), f.text()))
		}
	case changeRelease:
		id, packetID := f.uvarint(), uint16(f.uvarint())
		err = tx.Delete(tableIDs, idKey(id, packetID, d.Outbox.Class()))
	case changeReceived:
		id, class, ordinal, durable := f.uvarint(), f.byte(), f.uvarint(), f.uvarint()
		if !f.bad {
			err = errors.Join(
				deleteReceived(tx, append(sessionPrefix(id), class), durable),
				tx.Put(tableReceived, binary.BigEndian.AppendUint64(append(sessionPrefix(id), class), ordinal), nil))
		}
	case changeWill:
		client := f.text()
		if rest := f.p; !f.bad {
			err = tx.Put(tableWills, []byte(client), rest)
		}
	case changeNoWill:
		client, id := f.text(), f.uvarint()
		if old := (&fields{p: tx.Get(tableWills, []byte(client))}).message(); old.id == id && !f.bad {
			err = tx.Delete(tableWills, []byte(client))
		}
	default:
		return fmt.Errorf("change %q is not known", d.Topic[1])
	}
	if f.bad {
		err = fmt.Errorf("change %q: malformed", d.Topic[1])
	}
	return err
}

func applyPublish(tx rows.Tx, d *buffer.Delivery, stamp func(time.Duration) buffer.Stamp) error {
	m, ok := parseMark(d.Topic)
	if !ok {
		return fmt.Errorf("mark of a publish: malformed")
	}
	if m.flags&markID != 0 {
		if err := tx.Put(tableIDs, idKey(m.session, m.packetID, d.Outbox.Class()), nil); err != nil {
			return err
		}
	}
	switch {
	case m.flags&markRetain == 0:
		return nil
	case len(d.Payload) == 0, d.Expiry > 0 && d.Age() >= d.Expiry: // [MQTT-3.3.1-6]
		return tx.Delete(tableRetained, nameKey(nil, m.topic))
	}
	saved := savedMessage{Message: Message{Topic: m.topic, Payload: d.Payload, Props: d.Props, QoS: d.QoS, Retain: true, Expiry: d.Expiry}, since: stamp(d.Age()), user: m.client}
	return tx.Put(tableRetained, nameKey(nil, m.topic), saved.append(nil))
}

// endSession deletes what belongs to a session.
func endSession(tx rows.Tx, id uint64) error {
	if id == 0 {
		return nil
	}
	return errors.Join(
		deleteRows(tx, tableSubs, sessionPrefix(id)),
		deleteRows(tx, tableIDs, sessionPrefix(id)),
		deleteRows(tx, tableReceived, sessionPrefix(id)))
}

// deleteReceived deletes what is known of the copies of a lane up to an ordinal.
func deleteReceived(tx rows.Tx, lane []byte, upTo uint64) error {
	var keys [][]byte
	for k := range tx.Rows(tableReceived, lane) {
		if len(k) == len(lane)+8 && binary.BigEndian.Uint64(k[len(lane):]) > upTo {
			break
		}
		keys = append(keys, append([]byte(nil), k...))
	}
	for _, k := range keys {
		if err := tx.Delete(tableReceived, k); err != nil {
			return err
		}
	}
	return nil
}

// deleteRows deletes the rows of a table whose keys begin with prefix.
func deleteRows(tx rows.Tx, table string, prefix []byte) error {
	var keys [][]byte
	for k := range tx.Rows(table, prefix) {
		keys = append(keys, append([]byte(nil), k...))
	}
	for _, k := range keys {
		if err := tx.Delete(table, k); err != nil {
			return err
		}
	}
	return nil
}
