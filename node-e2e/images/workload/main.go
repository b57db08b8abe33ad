// Command workload is the container program of the node suite's pods: it serves
// HTTP, holds a file on a volume, and fails, exits or lingers on request.
//
// Endpoints, on $PORT (8080 by default):
//
//	GET /healthz            200, or 503 after /fail?on=true
//	    /fail?on=BOOL       switches the status of /healthz and /readyz
//	GET /readyz             like /healthz, for a readiness probe of its own
//	    /exit?code=N        responds, then exits with N
//	GET /file               the content of --file as it is now
//	GET /info               hostname, pid, start time and the file, as JSON
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
)

type options struct {
	file      string
	content   string
	listen    bool
	runFor    time.Duration
	exitCode  int
	termDelay time.Duration
	termCode  int
	failing   bool
	memory    int
}

func main() {
	var o options
	flag.StringVar(&o.file, "file", "", "write this file at the start, unless it exists, and keep it open")
	flag.StringVar(&o.content, "content", "", "content of --file (default: host name and start time)")
	flag.BoolVar(&o.listen, "listen", true, "serve HTTP on $PORT (default 8080)")
	flag.DurationVar(&o.runFor, "run-for", 0, "exit with --exit-code after this duration (0: run until stopped)")
	flag.IntVar(&o.exitCode, "exit-code", 0, "exit code after --run-for")
	flag.DurationVar(&o.termDelay, "term-delay", 0, "keep running this long after SIGTERM")
	flag.IntVar(&o.termCode, "term-code", 0, "exit code after SIGTERM")
	flag.BoolVar(&o.failing, "fail", false, "start with a failing /healthz")
	flag.IntVar(&o.memory, "memory", 0, "allocate this many MiB at the start, write to every page, and keep them")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "workload: unexpected argument %q; see --help\n", flag.Arg(0))
		os.Exit(2)
	}
	code, err := run(o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "workload:", err)
		code = 1
	}
	os.Exit(code)
}

// run returns the exit code. It ends on SIGTERM or SIGINT, on /exit, or after
// --run-for, whatever comes first.
func run(o options) (int, error) {
	// First of all: a SIGTERM before this line would end the process at once.
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()

	started := time.Now()
	hostname, err := os.Hostname()
	if err != nil {
		return 0, err
	}
	if o.file != "" {
		if o.content == "" {
			o.content = fmt.Sprintf("%s %s\n", hostname, started.UTC().Format(time.RFC3339Nano))
		}
		f, err := holdFile(o.file, o.content)
		if err != nil {
			return 0, fmt.Errorf("--file: %w", err)
		}
		defer f.Close()
	}

	held, err := holdMemory(o.memory)
	if err != nil {
		return 0, fmt.Errorf("--memory: %w", err)
	}
	defer runtime.KeepAlive(held)

	exit := make(chan int, 1)
	if o.listen {
		port := os.Getenv("PORT")
		if port == "" {
			port = "8080"
		}
		listener, err := net.Listen("tcp", net.JoinHostPort("", port))
		if err != nil {
			return 0, fmt.Errorf("listening on $PORT: %w", err)
		}
		server := &http.Server{
			Handler:           handler(o, hostname, started, exit),
			ReadHeaderTimeout: 5 * time.Second,
		}
		go func() {
			if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
				fmt.Fprintln(os.Stderr, "workload: serving HTTP:", err)
				exit <- 1
			}
		}()
	}

	var done <-chan time.Time
	if o.runFor > 0 {
		done = time.After(o.runFor)
	}
	select {
	case <-ctx.Done():
		time.Sleep(o.termDelay)
		return o.termCode, nil
	case <-done:
		return o.exitCode, nil
	case code := <-exit:
		return code, nil
	}
}

// holdMemory allocates memory that the kernel cannot give to others: private
// pages, each written to. It serves only afterwards, so that a pod that is ready uses it.
func holdMemory(mebibytes int) ([]byte, error) {
	if mebibytes == 0 {
		return nil, nil
	}
	memory, err := syscall.Mmap(-1, 0, mebibytes<<20, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	for i := 0; i < len(memory); i += os.Getpagesize() {
		memory[i] = 1
	}
	return memory, nil
}

// holdFile creates the file with its content, or leaves the one that is there:
// whether a restarted container finds what its predecessor wrote is what tests
// check. The file stays open, as a database's would.
func holdFile(path, content string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, os.ErrExist) {
		return os.OpenFile(path, os.O_RDWR, 0o644)
	}
	if err != nil {
		return nil, err
	}
	if _, err := io.WriteString(f, content); err != nil {
		return nil, err
	}
	return f, f.Sync()
}

func handler(o options, hostname string, started time.Time, exit chan<- int) http.Handler {
	var failing atomic.Bool
	failing.Store(o.failing)
	health := func(w http.ResponseWriter, _ *http.Request) {
		if failing.Load() {
			http.Error(w, "set to fail", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	}

	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", health)
	mux.HandleFunc("/readyz", health)
	mux.HandleFunc("/fail", func(w http.ResponseWriter, r *http.Request) {
		on, err := strconv.ParseBool(r.FormValue("on"))
		if err != nil {
			http.Error(w, "the query parameter on must be true or false", http.StatusBadRequest)
			return
		}
		failing.Store(on)
		fmt.Fprintln(w, "failing:", on)
	})
	mux.HandleFunc("/exit", func(w http.ResponseWriter, r *http.Request) {
		code, err := strconv.Atoi(r.FormValue("code"))
		if err != nil || code < 0 || code > 255 {
			http.Error(w, "the query parameter code must be a number from 0 to 255", http.StatusBadRequest)
			return
		}
		fmt.Fprintln(w, "exiting with", code)
		if f, ok := w.(http.Flusher); ok {
			f.Flush()
		}
		select {
		case exit <- code:
		default:
		}
	})
	mux.HandleFunc("GET /file", func(w http.ResponseWriter, r *http.Request) {
		if o.file == "" {
			http.Error(w, "workload runs without --file", http.StatusNotFound)
			return
		}
		http.ServeFile(w, r, o.file)
	})
	mux.HandleFunc("GET /info", func(w http.ResponseWriter, _ *http.Request) {
		info := map[string]any{"hostname": hostname, "pid": os.Getpid(), "started": started.UTC()}
		if o.file != "" {
			content, err := os.ReadFile(o.file)
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			info["file"] = string(content)
		}
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(info); err != nil {
			fmt.Fprintln(os.Stderr, "workload: answering /info:", err)
		}
	})
	return mux
}
