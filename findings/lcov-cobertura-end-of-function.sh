#!/usr/bin/env bash
# lcov_cobertura 2.1.1 takes the last line of a function, which coverage.py 7.17.5 writes, for a part of its name.
#
# coverage.py's lcov report has lcov 2's form of a function, "FN:1,4,reached" (first line, last line, name), and then
# "FNDA:1,reached". The converter splits the first at one comma only. So its Cobertura file has each function twice:
# "4,reached" at line 1 that was never called, and "reached", called, at line 0. Lines and branches are right.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check coverage==7.17.5 lcov-cobertura==2.1.1
cat > sample.py <<'EOF'
def reached(value):
    if value:
        return 1
    return 2


reached(1)
EOF
env/bin/coverage run --branch sample.py
env/bin/coverage lcov -q -o report.info
grep '^FN' report.info
env/bin/lcov_cobertura report.info -o report.xml
cat > show.py <<'EOF'
import xml.etree.ElementTree

for method in xml.etree.ElementTree.parse("report.xml").iter("method"):
    line = method.find("lines/line")
    print(method.get("name"), "line", line.get("number"), "hits", line.get("hits"))
EOF
env/bin/python show.py | tee seen
grep -q '^FN:1,4,reached$' report.info
printf '%s\n' '4,reached line 1 hits 0' 'reached line 0 hits 1' | diff seen -
