package opcua

import (
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	// The library's server keeps a subscription until its life is over, also when the
	// server is closed.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/gopcua/opcua/server.(*Subscription).run"))
}
