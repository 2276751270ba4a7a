package buffer

// Outcome is how a copy ended.
type Outcome uint8

// The outcomes. Delivered was acknowledged by the destination. Parked was
// refused for good and is kept for inspection. Uncertain is a QoS 2 copy whose
// fate an upstream that lost our session took with it.
const (
	Delivered Outcome = iota + 1
	Parked
	Uncertain
	DroppedExpired     // past its own expiry
	DroppedAge         // older than the class keeps
	DroppedFull        // no room
	DroppedOldest      // made room for a newer one
	DroppedQuarantined // on a part of the disk that is damaged
	DroppedEnded       // the destination is gone for good
	DroppedRefused     // the destination refused it, or takes nothing as large
	Moved              // to another destination, in whose ledger it counts from then on
	numOutcomes        // the outcomes stand in files: add at the end
)

// Reasons are the names of what a copy can be dropped for.
var reasons = map[Outcome]string{
	DroppedExpired: "expired", DroppedAge: "age", DroppedFull: "full", DroppedOldest: "oldest", DroppedQuarantined: "quarantined",
	DroppedEnded: "ended", DroppedRefused: "refused", Moved: "moved",
}

// Ledger counts the copies of one or more outboxes since their first:
//
//	Accepted = Delivered + Stored + Parked + Uncertain + Σ Dropped
//
// Every term is counted where it happens, none is what the others leave over.
type Ledger struct {
	Accepted  uint64            `json:"accepted"`
	Delivered uint64            `json:"delivered"`
	Stored    uint64            `json:"stored"`
	Parked    uint64            `json:"parked"`
	Uncertain uint64            `json:"uncertain"`
	Dropped   map[string]uint64 `json:"dropped"` // by reason
}

// Add adds what another one counts.
func (l *Ledger) Add(o Ledger) {
	l.Accepted += o.Accepted
	l.Delivered += o.Delivered
	l.Stored += o.Stored
	l.Parked += o.Parked
	l.Uncertain += o.Uncertain
	for reason, n := range o.Dropped {
		if l.Dropped == nil {
			l.Dropped = make(map[string]uint64)
		}
		l.Dropped[reason] += n
	}
}

// Difference is what is missing on the right side of the equation, 0 when the
// ledger balances.
func (l *Ledger) Difference() int64 {
	d := int64(l.Accepted) - int64(l.Delivered+l.Stored+l.Parked+l.Uncertain)
	for _, n := range l.Dropped {
		d -= int64(n)
	}
	return d
}

func (l *Ledger) count(out Outcome, n uint64) {
	switch out {
	case Delivered:
		l.Delivered += n
	case Parked:
		l.Parked += n
	case Uncertain:
		l.Uncertain += n
	default:
		if n > 0 {
			l.Dropped[reasons[out]] += n
		}
	}
}
