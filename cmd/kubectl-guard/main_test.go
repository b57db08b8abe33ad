package main

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestMain is the program of the tests below, too.
func TestMain(m *testing.M) {
	switch {
	case os.Getenv("RUN_MAIN") != "":
		main()
		os.Exit(0)
	case os.Getenv("INTERRUPTIBLE") == "":
		os.Exit(m.Run())
	}
	ctx := interruptible()
	_, _ = os.Stdout.WriteString("ready\n")
	<-ctx.Done()
	_, _ = os.Stdout.WriteString("done!\n")
	time.Sleep(time.Minute)
}

func TestSignals(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ first, second os.Signal }{
		"Ctrl-C twice":    {os.Interrupt, os.Interrupt},
		"a lost terminal": {syscall.SIGHUP, os.Interrupt},
		"a lost reader":   {syscall.SIGPIPE, syscall.SIGTERM},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			command := exec.Command(os.Args[0])
			command.Env = append(os.Environ(), "INTERRUPTIBLE=yes")
			out, err := command.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, command.Start())
			line := make([]byte, len("ready\n"))
			_, err = out.Read(line)
			require.NoError(t, err)
			require.NoError(t, command.Process.Signal(test.first))
			_, err = out.Read(line)
			require.NoError(t, err)
			require.Equal(t, "done!\n", string(line), "the first one lets it clean up")
			require.NoError(t, command.Process.Signal(syscall.SIGHUP), "a terminal may say it twice")
			time.Sleep(50 * time.Millisecond)
			require.NoError(t, command.Process.Signal(test.second))
			err = command.Wait()
			var ended *exec.ExitError
			require.ErrorAs(t, err, &ended)
			require.Equal(t, test.second, ended.Sys().(syscall.WaitStatus).Signal(), "the second one ends it")
		})
	}
}
