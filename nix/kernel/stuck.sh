#!/bin/sh
# stuck.sh .config FRAGMENT…: fails, and lists the options of the fragments that the configuration does not have.
set -eu
config=$1
shift
# If several fragments set an option, the last one counts, as for merge_config.sh. Options that a fragment's head
# lists under Wishes may be missing.
cat "$@" | awk -v config="$config" '
	function note(name, value) { if (!(name in want)) order[++n] = name; want[name] = value }
	/^CONFIG_[A-Za-z0-9_]+=/ { i = index($0, "="); note(substr($0, 1, i - 1), substr($0, i + 1)) }
	/^# CONFIG_[A-Za-z0-9_]+ is not set/ { note($2, "n") }
	/^# Wishes:/ { for (i = 3; i <= NF; i++) wished["CONFIG_" $i] }
	END {
		while ((getline line < config) > 0)
			if (line ~ /^CONFIG_/) { i = index(line, "="); have[substr(line, 1, i - 1)] = substr(line, i + 1) }
		for (k = 1; k <= n; k++) {
			name = order[k]; got = (name in have) ? have[name] : "n"
			if (got == want[name] || name in wished) continue
			print "vmdebug: " name ": wanted " want[name] ", found " got
			bad = 1
		}
		if (bad) print "vmdebug: `vmdebug kernel config --source TREE …` names the dependencies that are missing"
		exit bad
	}
' >&2
