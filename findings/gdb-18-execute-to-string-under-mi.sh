#!/usr/bin/env bash
# In GDB 18.1 that speaks MI, gdb.execute(COMMAND, to_string=True) returns an MI stream record, not the command's text.
#
# Up to GDB 17.2 the string was what the command prints: "$1 = 2\n". Now it is that text once more quoted and marked
# for MI: '~"$1 = 2\\n"\n'. Python code that runs in a GDB behind a front end (any script that parses `info …`)
# therefore breaks, while at a terminal it works. The same command through `interpreter-exec console` gives plain text.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
cat > commands <<'EOF'
-interpreter-exec console "python print('SEEN', repr(gdb.execute('print 1+1', to_string=True)))"
-interpreter-exec console "python print('SEEN', repr(gdb.execute('interpreter-exec console \"print 1+1\"', to_string=True)))"
-gdb-exit
EOF
for version in 17.2.0.post5 18.1.0.post1; do
	python3 -m venv "$version"
	"$version/bin/pip" install -q --disable-pip-version-check gdb-for-pwndbg==$version
	"$version/bin/gdb" -nx -q --interpreter=mi4 -iex 'set debuginfod enabled off' < commands \
		| sed -n "s/^~\"SEEN \(.*\)\\\\n\"$/${version%.post*} \1/p"
done | tee seen
cat > expected <<'EOF'
17.2.0 '$1 = 2\\n'
17.2.0 '$2 = 2\\n'
18.1.0 '~\"$1 = 2\\\\n\"\\n'
18.1.0 '$2 = 2\\n'
EOF
diff expected seen
