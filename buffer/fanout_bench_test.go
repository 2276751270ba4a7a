package buffer

import (
	"fmt"
	"testing"
)

// BenchmarkFanout has messages that go to many outboxes read soon after: what a message
// costs for each of the sessions that are kept and get it. One operation is one copy.
func BenchmarkFanout(b *testing.B) {
	payloads := readings()
	for _, outboxes := range []int{1, 10, 100, 1000} {
		b.Run(fmt.Sprint("outboxes=", outboxes), func(b *testing.B) {
			buf, err := Open(b.TempDir(), Options{})
			if err != nil {
				b.Fatal(err)
			}
			defer buf.Close()
			copies, readers := make([]Copy, outboxes), make([]*Reader, outboxes)
			for i := range outboxes {
				o := outbox(b, buf, fmt.Sprint("session/", i), Local)
				copies[i] = Copy{Outbox: o, QoS: 1}
				if readers[i], err = buf.ReaderFunc(func() {}, o); err != nil {
					b.Fatal(err)
				}
				defer readers[i].Close()
			}
			const most = 200 // messages at a time
			done := make(receipt, most)
			dst := make([]Delivery, 64)
			b.ReportAllocs()
			b.ResetTimer()
			b.StopTimer()
			for left := b.N; left > 0; {
				messages := min(most, (left+outboxes-1)/outboxes)
				left -= messages * outboxes
				for i := range messages {
					m := Message{Topic: "plant/a/b", Payload: payloads[i], Urgent: true, QoS: 1, Copies: copies}
					if err := buf.Append(b.Context(), Local, &m, done); err != nil {
						b.Fatal(err)
					}
				}
				for range messages {
					if err := <-done; err != nil {
						b.Fatal(err)
					}
				}
				b.StartTimer()
				for i, r := range readers {
					for waits := messages; waits > 0; {
						n, err := r.TryNext(dst)
						if err != nil || n == 0 {
							b.Fatalf("%d of %d are missing: %v", waits, messages, err)
						}
						for k := range dst[:n] {
							copies[i].Outbox.Settle(dst[k].Ordinal, Delivered)
						}
						waits -= n
					}
				}
				b.StopTimer()
			}
		})
	}
}
