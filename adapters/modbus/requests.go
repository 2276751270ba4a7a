package modbus

import "time"

// A Request is one that a link sends again and again, as long as the device does
// not refuse it.
type Request struct {
	Device   string
	Unit     uint8
	Table    Table
	Function uint8
	Start    int
	Count    int // registers or bits
	Every    time.Duration
	Points   []string
	Takes    time.Duration // on a serial line; 0 if that is not known
}

// slowness is how long a unit on a line may think: most take 5 to 50 ms.
const slowness = 10 * time.Millisecond

// Requests returns what the link asks for.
func (l *Link) Requests() (all []Request) {
	for _, j := range l.jobs {
		p := l.bus.plans[j]
		for _, r := range p.requests {
			q := Request{
				Device: j.Device.Name, Unit: p.unit, Table: r.table, Function: readFunction(r.table),
				Start: r.Start, Count: r.Count, Every: j.Every,
			}
			for _, i := range r.Spans {
				if f := &p.fields[i]; f.sample >= 0 {
					q.Points = append(q.Points, j.Samples[f.sample].Point.Name)
				}
			}
			if line, ok := l.bus.wire.(*line); ok && line.char > 0 {
				const request, around = 8, 3 // bytes; unit and CRC
				chars := request + around + answerSize(readPDU(r.table, uint16(r.Start), uint16(r.Count)))
				q.Takes = time.Duration(chars)*line.char + 2*line.gap + slowness + l.bus.pause
			}
			all = append(all, q)
		}
	}
	return all
}
