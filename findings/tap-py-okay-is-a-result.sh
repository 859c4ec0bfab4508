#!/usr/bin/env bash
# tap.py 3.2.1 takes any line that begins with "ok" or "not ok" for a test result, also the word "okay".
#
# The TAP specification (testanything.org, "Test lines") wants ok or not ok, then blanks. The parser's expression is
# "ok" followed by optional blanks, and the number is optional too, so text between the results, which KTAP allows, adds
# tests that passed. Seen: "okay, here we go" is the result of a test "ay, here we go".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check tap.py==3.2.1
venv/bin/python - <<'EOF'
import sys

from tap.parser import Parser

seen = [
    (line.category, line.ok, line.number, line.description)
    for line in map(Parser().parse_line, ["okay, here we go", "ok 1 the only test"])
]
print(*seen, sep="\n")
sys.exit(seen != [("test", True, None, "ay, here we go"), ("test", True, 1, "the only test")])
EOF
