// Command delay is a TCP proxy that holds back every byte for a while, in both
// directions, as a long wire does. Benchmarks use it where the kernel has no
// netem.
//
//	delay LISTEN TARGET DURATION
package main

import (
	"io"
	"log"
	"net"
	"os"
	"time"
)

func main() {
	if len(os.Args) != 4 {
		log.Fatal("usage: delay LISTEN TARGET DURATION")
	}
	each, err := time.ParseDuration(os.Args[3])
	if err != nil {
		log.Fatal(err)
	}
	l, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	for {
		c, err := l.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go func() {
			t, err := net.Dial("tcp", os.Args[2])
			if err != nil {
				c.Close()
				return
			}
			go pipe(t.(*net.TCPConn), c, each)
			pipe(c.(*net.TCPConn), t, each)
		}()
	}
}

// piece is what was read at once, and when it is due.
type piece struct {
	b   []byte
	due time.Time
}

// pipe moves bytes, each half of the round trip's delay later. What is on its
// way is bounded as by a window of 16 MiB.
func pipe(to *net.TCPConn, from io.Reader, each time.Duration) {
	way := make(chan piece, 256)
	go func() {
		defer close(way)
		for {
			b := make([]byte, 64<<10)
			n, err := from.Read(b)
			if n > 0 {
				way <- piece{b[:n], time.Now().Add(each)}
			}
			if err != nil {
				return
			}
		}
	}()
	for p := range way {
		time.Sleep(time.Until(p.due))
		if _, err := to.Write(p.b); err != nil {
			break
		}
	}
	to.CloseWrite()
	for range way { // let the reader end
	}
}
