package recipe

import "testing"

func TestNearest(t *testing.T) {
	for name, want := range map[string]string{
		"sshd.service":            `; did you mean "ssh.service"?`,
		"shs.service":             `; did you mean "ssh.service"?`,
		"SSH_service":             `; did you mean "ssh.service"?`,
		"nothing-like-it.service": "",
		"":                        "",
	} {
		if got := Nearest(name, []string{"cron.service", "ssh.service", "y.timer"}); got != want {
			t.Errorf("Nearest(%q) = %q, want %q", name, got, want)
		}
	}
}
