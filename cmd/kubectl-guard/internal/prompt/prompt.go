// Package prompt asks the user yes-or-no questions.
package prompt

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Prompter asks questions whose answer is yes or no.
type Prompter struct {
	in  io.Reader
	out io.Writer
	// answers are what is read from in; nil before the first question.
	answers *bufio.Reader
}

// New returns a prompter that reads answers from in.
func New(in io.Reader, out io.Writer) *Prompter { return &Prompter{in: in, out: out} }

// Confirm asks a question on stdout and returns nil when the answer is yes.
func (p *Prompter) Confirm(ctx context.Context, question string) error {
	yes, err := p.Ask(ctx, question)
	if err != nil || yes {
		return err
	}
	return errors.New("not confirmed, nothing was done; answer y, or give --yes")
}

// ErrInterrupted: the command was ended at a question.
var ErrInterrupted = errors.New("interrupted")

// Ask asks a question on stdout and reports whether the answer is yes. It returns
// ErrInterrupted when the context ends first; no question may follow then.
func (p *Prompter) Ask(ctx context.Context, question string) (bool, error) {
	if p.answers == nil {
		// One for all questions: it reads ahead.
		p.answers = bufio.NewReader(p.in)
	}
	fmt.Fprintf(p.out, "%s [y/N] ", question)
	type line struct {
		text string
		err  error
	}
	lines := make(chan line, 1)
	go func() {
		text, err := p.answers.ReadString('\n')
		lines <- line{text, err}
	}()
	var answer line
	select {
	case answer = <-lines:
	case <-ctx.Done():
		fmt.Fprintln(p.out)
		return false, ErrInterrupted
	}
	if answer.err != nil && !errors.Is(answer.err, io.EOF) {
		return false, fmt.Errorf("read the answer: %w", answer.err)
	}
	switch strings.ToLower(strings.TrimSpace(answer.text)) {
	case "y", "yes":
		return true, nil
	case "":
		fmt.Fprintln(p.out)
	}
	return false, nil
}
