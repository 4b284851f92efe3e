package berth

import (
	"fmt"
	"regexp"
	"testing"

	"k8s.io/apimachinery/pkg/types"
)

func TestNames(t *testing.T) {
	form := regexp.MustCompile(`^bt[a-z2-7]{13}$`) // IFNAMSIZ is 16 with the NUL
	taps, macs := map[string]string{}, map[string]string{}
	for i := range 10_000 {
		vm, network := types.UID(fmt.Sprintf("00000000-0000-4000-8000-%012d", i/2)), fmt.Sprint("net", i%2)
		tap, mac := TapName(vm, network), MAC(vm, i%2)
		who := string(vm) + " " + network
		if !form.MatchString(tap) {
			t.Fatalf("the tap of %s is %q", who, tap)
		}
		if len(mac) != 6 || mac[0]&0x0f != 0x02 {
			t.Fatalf("the MAC of %s is %s, want a local unicast address", who, mac)
		}
		if other, ok := taps[tap]; ok {
			t.Fatalf("%s and %s share the tap %s", who, other, tap)
		}
		if other, ok := macs[mac.String()]; ok {
			t.Fatalf("%s and %s share the MAC %s", who, other, mac)
		}
		taps[tap], macs[mac.String()] = who, who
	}
	if TapName("a", "b") != TapName("a", "b") || MAC("a", 1).String() != "42:6d:40:6c:a1:a3" {
		t.Error("names change")
	}
	if DomainName("a-b", "c") == DomainName("a", "b-c") {
		t.Error("two VirtualMachines share a domain name") // an underscore is in neither name
	}
}

// TestMACs: a VM's never change, and two of its NICs have two.
func TestMACs(t *testing.T) {
	const vm = "0b9d4f6e-3c1a-4a55-9f0e-6a1c2f3d4e5f"
	if got := MAC(vm, 0).String(); got != "42:63:97:38:ee:46" {
		t.Errorf("it is %s now", got)
	}
	if a, b := MAC(vm, 0), MAC(vm, 1); a.String() == b.String() {
		t.Errorf("two NICs share %s", a)
	}
}
