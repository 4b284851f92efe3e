// Package env gives tests the real parts that they ask for: an API server, a
// libvirtd. A part that is missing skips the test on a laptop and fails it where
// BERTH_TEST_REQUIRE is set, as `make test` does.
package env

import (
	"os"
	"testing"
)

// Need returns the value of an environment variable that names a real part.
func Need(t testing.TB, variable, what string) string {
	t.Helper()
	value := os.Getenv(variable)
	if value == "" {
		Missing(t, "needs "+variable+": "+what)
	}
	return value
}

// Missing ends a test for want of a part.
func Missing(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("BERTH_TEST_REQUIRE") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}
