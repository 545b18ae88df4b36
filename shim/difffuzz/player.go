// SPDX-License-Identifier: Apache-2.0

package difffuzz

import (
	"bufio"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A Player plays programs in a process that it starts when needed, and starts
// again when a program has killed it. It is used by one goroutine.
type Player struct {
	Name string
	Argv []string
	// Patience is how long a program may take.
	Patience time.Duration

	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan string
	log   lastWords
	limit int
	next  int
}

// AwaitLimit is how long an await waits, in milliseconds.
const AwaitLimit = 3000

// SetAwaitLimit changes it.
func (p *Player) SetAwaitLimit(ms int) {
	p.limit = ms
	if p.cmd != nil {
		fmt.Fprintf(p.in, "limit %d\n", ms)
	}
}

func (p *Player) start() error {
	p.cmd = exec.Command(p.Argv[0], p.Argv[1:]...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	p.cmd.Stderr = &p.log
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := p.cmd.Start(); err != nil {
		p.cmd = nil
		return fmt.Errorf("start the %s player: %w", p.Name, err)
	}
	lines := make(chan string, 64)
	p.lines = lines
	go func() {
		defer close(lines)
		s := bufio.NewScanner(out)
		s.Buffer(nil, 1<<20)
		for s.Scan() {
			lines <- s.Text()
		}
	}()
	if p.limit != 0 {
		p.SetAwaitLimit(p.limit)
	}
	return nil
}

// Play returns the transcript of a program. A player that dies or hangs says
// so at its end, and is killed.
func (p *Player) Play(lines []string) (string, error) {
	if p.cmd == nil {
		if err := p.start(); err != nil {
			return "", err
		}
	}
	p.next++
	begin, end := fmt.Sprintf("begin %d", p.next), fmt.Sprintf("end %d", p.next)
	// A write that fails shows as the end of the output.
	go fmt.Fprintf(p.in, "program %d\n%s\nend\n", p.next, strings.Join(lines, "\n"))
	var b strings.Builder
	timeout := time.NewTimer(p.Patience)
	defer timeout.Stop()
	for {
		select {
		case line, ok := <-p.lines:
			switch {
			case !ok:
				fmt.Fprintf(&b, "the player died: %v\n%s", p.Stop(), p.log.take())
				return b.String(), nil
			case line == end:
				return b.String(), nil
			case line != begin:
				fmt.Fprintln(&b, line)
			}
		case <-timeout.C:
			p.Kill()
			fmt.Fprintf(&b, "the player hung\n")
			return b.String(), nil
		}
	}
}

// Stop ends the process by closing its input, and waits for it.
func (p *Player) Stop() error {
	if p.cmd == nil {
		return nil
	}
	cmd := p.cmd
	p.cmd = nil
	p.in.Close()
	kill := time.AfterFunc(10*time.Second, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	defer kill.Stop()
	for range p.lines { //nolint:revive // until the output ends
	}
	return cmd.Wait()
}

// Kill ends the process and its children at once.
func (p *Player) Kill() {
	if p.cmd == nil {
		return
	}
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	_ = p.Stop()
}

// lastWords keeps the end of what is written to it.
type lastWords struct {
	mu   sync.Mutex
	text []byte
}

func (w *lastWords) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.text = append(w.text, b...)
	if n := len(w.text) - 4096; n > 0 {
		w.text = w.text[n:]
	}
	return len(b), nil
}

func (w *lastWords) take() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := string(w.text)
	w.text = nil
	return s
}
