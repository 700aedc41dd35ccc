// A relay as Go programs have them: io.Copy both ways, which is splice(2).
// It is given the address of its upstream and prints its own port.
package main

import (
	"fmt"
	"io"
	"net"
	"os"
)

func pump(to, from net.Conn, done chan<- struct{}) {
	io.Copy(to, from)
	to.(*net.TCPConn).CloseWrite()
	done <- struct{}{}
}

func relay(client net.Conn, upstream string) {
	defer client.Close()
	server, err := net.Dial("tcp", upstream)
	if err != nil {
		fmt.Fprintln(os.Stderr, "relay:", err)
		return
	}
	defer server.Close()
	done := make(chan struct{})
	go pump(server, client, done)
	go pump(client, server, done)
	<-done
	<-done
}

func main() {
	// The test holds our stdin: nobody is left behind when it dies.
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, "relay:", err)
		os.Exit(1)
	}
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	for {
		client, err := listener.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, "relay:", err)
			os.Exit(1)
		}
		go relay(client, os.Args[1])
	}
}
