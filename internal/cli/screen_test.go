package cli

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/gorilla/websocket"
)

func TestTheScreensPageIsForWhoKnowsItsPath(t *testing.T) {
	server := httptest.NewServer(page("/secret/", func(screen io.ReadWriteCloser) {
		_, _ = io.Copy(screen, screen)
		_ = screen.Close()
	}))
	defer server.Close()
	for path, want := range map[string]string{
		"/": "", "/novnc/core/rfb.js": "", "/screen": "", "/secret/novnc/../../vnc.go": "",
		"/secret/": "./novnc/core/rfb.js", "/secret/novnc/core/rfb.js": "class RFB", "/secret/novnc/vendor/pako/lib/zlib/inflate.js": "inflate", "/secret/novnc/LICENSE.txt": "MPL",
	} {
		response, err := http.Get(server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		_ = response.Body.Close()
		if is := response.StatusCode == http.StatusOK; err != nil || is != (want != "") || !strings.Contains(string(body), want) {
			t.Errorf("%s is answered by %s, %v: %.100q", path, response.Status, err, body)
		}
	}
	url := "ws" + strings.TrimPrefix(server.URL, "http") + "/secret/screen"
	dialer := websocket.Dialer{Subprotocols: []string{"binary"}}
	if _, _, err := dialer.Dial(url, http.Header{"Origin": {"http://evil.example.org"}}); err == nil {
		t.Error("the screen is shown to another site's page")
	}
	conn, _, err := dialer.Dial(url, http.Header{"Origin": {server.URL}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, message := range []string{"RFB 003.008\n", strings.Repeat("x", 100000)} {
		if err := conn.WriteMessage(websocket.BinaryMessage, []byte(message)); err != nil {
			t.Fatal(err)
		}
		for got := ""; got != message; {
			_, part, err := conn.ReadMessage()
			if err != nil || !strings.HasPrefix(message, got+string(part)) {
				t.Fatalf("after %d bytes came %d: %v", len(got), len(part), err)
			}
			got += string(part)
		}
	}
}
