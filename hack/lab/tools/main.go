// Command tools is what pods of the lab talk to guests with, and worry their nodes.
//
//	tools get URL                 print what URL answers
//	tools serve ADDRESS X         answer X to everybody
//	tools pretend COUNT NAME ARG… run so many programs of that name with these arguments
package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

const requestTimeout = 20 * time.Second

func main() {
	if os.Getenv(idle) != "" {
		awaitEnd()
		return
	}
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "tools:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "get":
		ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
		defer cancel()
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, args[1], nil)
		if err != nil {
			return err
		}
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		_, err = io.Copy(os.Stdout, answer.Body)
		return err
	case len(args) == 3 && args[0] == "serve":
		server := http.Server{
			Addr: args[1], ReadHeaderTimeout: requestTimeout,
			Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, args[2]) }),
		}
		go func() { awaitEnd(); os.Exit(0) }()
		return server.ListenAndServe()
	case len(args) >= 3 && args[0] == "pretend":
		return pretend(args[1], args[2], args[3:])
	}
	return fmt.Errorf("usage: tools get URL | tools serve ADDRESS TEXT | tools pretend COUNT NAME ARG…")
}

// awaitEnd waits for SIGTERM: what a container's first process does not handle does not end it.
func awaitEnd() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	<-signals
}
