#!/usr/bin/env bash
# pprof (of Go 1.19) shows the Rust functions `<block::Disk>::run` and `<net::Card>::run` as one function `::run`.
#
# A function in a profile has a name and a system_name, the mangled one, so that a guess is to fill in both where there is no
# other. But where both are the same, pprof takes the name for one to be demangled, or, with :: in it, for one of
# C++ whose template arguments in <> can go. Functions that then have the same name are added up. A function without a
# system_name keeps its name, and -symbolize=none keeps all.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
# apt drops its privileges only where the directory is open to it.
chmod 755 .
apt-get download -q -q golang-1.19-go=1.19.8-2
dpkg --fsys-tarfile golang-1.19-go_*.deb | tar -x --wildcards '*/pprof'
cat > profile.py <<'EOF'
import sys


def number(field, value):
    return bytes([field << 3, value])


def message(field, *parts):
    content = b"".join(parts)
    return bytes([field << 3 | 2, len(content)]) + content


names = ["<block::Disk>::run", "<net::Card>::run"]
strings = ["", "samples", "count", *names]
out = message(1, number(1, 1), number(2, 2)) + message(3, number(1, 1), number(7, 1))
for each in (1, 2):
    name = 2 + each
    out += message(2, number(1, each), number(2, 10 * each))
    out += message(4, number(1, each), number(2, 1), message(4, number(1, each)))
    out += message(5, number(1, each), number(2, name), number(3, name if sys.argv[1] == "both" else 0))
out += b"".join(message(6, text.encode()) for text in strings)
sys.stdout.buffer.write(out)
EOF
export HOME=$work PPROF_TMPDIR=$work
pprof=$(echo usr/lib/go-1.19/pkg/tool/*/pprof)
top() { "$pprof" -top "$@" 2>/dev/null | awk '$1 ~ /^[0-9]+$/ { print $1, $6 }'; }
for names in both one; do python3 profile.py $names >$names.pb; done
{
	echo "both names:" && top both.pb
	echo "both names, -symbolize=none:" && top -symbolize=none both.pb
	echo "no system_name:" && top one.pb
} | tee seen
cat > expected <<'EOF'
both names:
30 ::run
both names, -symbolize=none:
20 <net::Card>::run
10 <block::Disk>::run
no system_name:
20 <net::Card>::run
10 <block::Disk>::run
EOF
diff expected seen
