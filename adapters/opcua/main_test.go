package opcua

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

// removeShared removes what tests have shared.
var removeShared = func() {}

func TestMain(m *testing.M) {
	// The library's server keeps a subscription until its life is over, also when the
	// server is closed.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/gopcua/opcua/server.(*Subscription).run"), goleak.Cleanup(func(code int) {
		removeShared()
		os.Exit(code)
	}))
}
