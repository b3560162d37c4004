#!/bin/sh
# Runs as --extract-hook with the new root as $1: the essential packages are
# unpacked, no maintainer script has run. Puts programs before others of the same
# name, which the finish hook takes away again.
set -eu
root=$1
mkdir -p "$root/usr/local/sbin" "$root/tmp/imgpipe.py3compile"
program() {
	cat >"$root/usr/local/sbin/$1"
	chmod 0755 "$root/usr/local/sbin/$1"
}

# A package that the setup hook has decompressed by now need not be again. apt
# puts symlinks N-PACKAGE before dpkg. No process is started for what the shell
# can do, as truncating a file instead of removing it.
program dpkg-deb <<'EOF'
#!/bin/sh -e
if [ "$1" = --fsys-tarfile ]; then
	name=${2##*/}
	[ ! -h "$2" ] || name=${name#*-}
	plain=/tmp/imgpipe.plain/$name
	: >"$plain.taken"
	if [ -s "$plain" ]; then
		cat "$plain"
		: >"$plain"
		exit
	fi
fi
exec /usr/bin/dpkg-deb "$@"
EOF

# each package's call takes a second on one core, and dpkg need not wait for it: one
# after the other runs meanwhile, and the finish hook makes what is left, or failed, on
# all cores
program py3compile <<'EOF'
#!/bin/sh
job=$(mktemp /tmp/imgpipe.py3compile/XXXXXXXX)
printf '%s\0' "$@" >"$job"
{
	flock 9
	[ ! -e "$job" ] || ! xargs -0 -a "$job" /usr/bin/py3compile || rm "$job"
} </dev/null >/dev/null 2>&1 3>&- 9</tmp/imgpipe.py3compile &
EOF

# at the end, once for each kernel
program update-initramfs <<'EOF'
#!/bin/sh
exit 0
EOF

# ca-certificates runs it twice. The second time is for the hooks in update.d and
# for what has changed since
program update-ca-certificates <<'EOF'
#!/bin/sh -e
bundle=/etc/ssl/certs/ca-certificates.crt
if [ $# = 0 ] && [ -e "$bundle" ] &&
	[ -z "$(find /etc/ca-certificates.conf /etc/ca-certificates /usr/share/ca-certificates \
		/usr/local/share/ca-certificates \( -cnewer "$bundle" -o -path '*/update.d/*' \) 2>&1)" ]; then
	exit
fi
exec /usr/sbin/update-ca-certificates "$@"
EOF
