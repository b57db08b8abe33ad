package unit

import (
	"io/fs"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func reader(files map[string]string) func(string) ([]byte, error) {
	return func(name string) ([]byte, error) {
		text, ok := files[name]
		if !ok {
			return nil, fs.ErrNotExist
		}
		return []byte(text), nil
	}
}

func TestExecStart(t *testing.T) {
	const kubeadm = `# Note: this drop-in only works with kubeadm
[Service]
Environment="KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml"
EnvironmentFile=-/etc/default/kubelet
ExecStart=
ExecStart=/usr/bin/kubelet $KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS
`
	for name, c := range map[string]struct {
		files   []string
		want    Command
		wantErr string
	}{
		"the unit alone": {
			files: []string{"[Unit]\nExecStart=/no\n[Service]\nExecStart=/usr/bin/kubelet\nRestart=always\n"},
			want:  Command{File: "0", Program: "/usr/bin/kubelet"},
		},
		"kubeadm's drop-in replaces it": {
			files: []string{"[Service]\nExecStart=/usr/bin/kubelet\n", kubeadm},
			want:  Command{File: "1", Program: "/usr/bin/kubelet", Arguments: "$KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS", Needs: []string{"KUBELET_CONFIG_ARGS"}},
		},
		"specifiers, quotes and escapes stay as written": {
			files: []string{"[Service]\nExecStart = -/opt/bin/kubelet --node-labels='a=b c' --host=%H \"--x=\\t$A\" $$\n"},
			want:  Command{File: "0", Prefix: "-", Program: "/opt/bin/kubelet", Arguments: `--node-labels='a=b c' --host=%H "--x=\t$A" $$`},
		},
		"continued lines with a comment between": {
			files: []string{"[Service]\nExecStart=/usr/bin/kubelet \\\n  --a \\\n# not this\n  --b\nRestart=always\n"},
			want:  Command{File: "0", Program: "/usr/bin/kubelet", Arguments: "--a --b"},
		},
		"a quoted program": {
			files: []string{"[Service]\r\nExecStart=\"/usr/bin/kubelet\" --a\r\n"},
			want:  Command{File: "0", Program: "/usr/bin/kubelet", Arguments: "--a"},
		},
		"reset and nothing after":    {files: []string{"[Service]\nExecStart=/usr/bin/kubelet\n", "[Service]\nExecStart=\n"}, wantErr: "no ExecStart="},
		"two commands":               {files: []string{"[Service]\nExecStart=/a\n", "[Service]\nExecStart=/b\n"}, wantErr: "1: the unit has 2 ExecStart= commands"},
		"two commands in a line":     {files: []string{"[Service]\nExecStart=/a ; /b\n"}, wantErr: "more than one command"},
		"a program from a variable":  {files: []string{"[Service]\nExecStart=/usr/$DIR/kubelet\n"}, wantErr: "specifiers or variables"},
		"a program without a folder": {files: []string{"[Service]\nExecStart=kubelet\n"}, wantErr: "not an absolute path"},
		"another name":               {files: []string{"[Service]\nExecStart=@/usr/bin/kubelet k\n"}, wantErr: "prefix @"},
		"an open continuation":       {files: []string{"[Service]\nExecStart=/a \\"}, wantErr: "0: the last line ends with a backslash"},
		"an open quote":              {files: []string{"[Service]\nExecStart=\"/a\n"}, wantErr: "not closed"},
	} {
		t.Run(name, func(t *testing.T) {
			files := map[string]string{}
			var names []string
			for i, text := range c.files {
				name := string(rune('0' + i))
				files[name] = text
				names = append(names, name)
			}
			got, err := ExecStart(names, reader(files))
			if c.wantErr != "" {
				require.ErrorContains(t, err, c.wantErr)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, c.want, got)
		})
	}
	_, err := ExecStart([]string{"gone"}, reader(nil))
	assert.ErrorContains(t, err, "read the unit file gone")
}

func TestDropInRunsTheProgramWithTheSameArguments(t *testing.T) {
	command := Command{File: "/f", Prefix: "-", Program: "/usr/bin/kubelet", Arguments: `$A --b='c d' %H`}
	data, err := DropIn(command, "/opt/x/kubelet", "/etc/c.yaml")
	require.NoError(t, err)
	assert.True(t, Ours(data))
	assert.False(t, Ours([]byte("[Service]\n")))

	files := map[string]string{"unit": "[Service]\nExecStart=/usr/bin/kubelet\n", "drop-in": string(data)}
	got, err := ExecStart([]string{"unit", "drop-in"}, reader(files))
	require.NoError(t, err)
	assert.Equal(t, Command{File: "drop-in", Prefix: "-", Program: "/opt/x/kubelet", Arguments: `$A --b='c d' %H --guard-config=/etc/c.yaml`}, got)

	_, err = DropIn(got, "/opt/x/kubelet", "/etc/c.yaml")
	assert.ErrorContains(t, err, "drop-in: ExecStart= has --guard-config already")
	_, err = DropIn(command, "/opt/a b", "/etc/c.yaml")
	assert.ErrorContains(t, err, `"/opt/a b" cannot be written`)
}

func TestBaseFindsWhatWouldOverrideUs(t *testing.T) {
	files := map[string]string{
		"/lib/kubelet.service":   "[Service]\nExecStart=/usr/bin/kubelet\n",
		"/etc/d/10-kubeadm.conf": "[Service]\nExecStart=\nExecStart=/usr/bin/kubelet $A\n",
		"/etc/d/95-us.conf":      "",
		"/run/d/99-log.conf":     "[Service]\nLogLevelMax=info\n",
		"/run/d/99-own.conf":     "[Service]\nExecStart=\nExecStart=/own\n",
	}
	base, later, err := Base([]string{"/lib/kubelet.service", "/etc/d/10-kubeadm.conf", "/etc/d/95-us.conf", "/run/d/99-log.conf"}, "/etc/d/95-us.conf", reader(files))
	require.NoError(t, err)
	assert.Equal(t, []string{"/lib/kubelet.service", "/etc/d/10-kubeadm.conf", "/run/d/99-log.conf"}, base)
	assert.Empty(t, later)

	_, later, err = Base([]string{"/lib/kubelet.service", "/etc/d/10-kubeadm.conf", "/run/d/99-own.conf"}, "/etc/d/95-us.conf", reader(files))
	require.NoError(t, err)
	assert.Equal(t, "/run/d/99-own.conf", later)
}
