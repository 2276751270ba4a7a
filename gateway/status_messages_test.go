package gateway

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
)

func TestMessageCounts(t *testing.T) {
	all := []adapters.Frames{
		{Device: "a", Good: 3},
		{Device: "b", Other: 1, Wrong: 2, TooLong: 3, Cut: 4, Last: []byte("\x02x"), LastWhat: "cut", LastTime: time.Unix(1, 0)},
	}
	got, err := json.Marshal(messageCounts(all))
	if err != nil {
		t.Fatal(err)
	}
	want := `[{"device":"a","good":3,"other":0,"wrongCheck":0,"tooLong":0,"cut":0},` +
		`{"device":"b","good":0,"other":1,"wrongCheck":2,"tooLong":3,"cut":4,"lastHex":"0278","lastWhat":"cut","lastTime":"1970-01-01T00:00:01Z"}]`
	if string(got) != want {
		t.Errorf("%s, want %s", got, want)
	}
}
