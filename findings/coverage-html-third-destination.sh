#!/usr/bin/env bash
# coverage.py 7.17.5's HTML report ends with an AssertionError if a file reporter's line has two missing branches.
#
# The documentation of FileReporter.arcs and exit_counts allows any number of ways out of a line. The text, lcov, XML
# and JSON reports take three; the HTML report asserts that an executed line has one missing branch at most, because
# a line of Python has two ways out.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check coverage==7.17.5
printf 'switch\na\nb\nc\n' > x.txt
cat > plugin.py <<'EOF'
import coverage

class Reporter(coverage.FileReporter):
    def lines(self):
        return {1, 2, 3, 4}
    def arcs(self):
        return {(1, 2), (1, 3), (1, 4)}
    def exit_counts(self):
        return {1: 3}

class Plugin(coverage.CoveragePlugin):
    def file_reporter(self, filename):
        return Reporter(filename)

def coverage_init(registry, options):
    registry.add_file_tracer(Plugin())
EOF
cat > report.py <<'EOF'
import os
import coverage

path = os.path.abspath("x.txt")
data = coverage.CoverageData(basename="data")
data.add_arcs({path: [(-1, 1), (1, 2)]})
data.add_file_tracers({path: "plugin.Plugin"})
data.write()
cover = coverage.Coverage(data_file="data", config_file=False, branch=True)
cover.set_option("run:plugins", ["plugin"])
cover.load()
cover.lcov_report(outfile="x.info")
print("lcov has", sum(line.startswith("BRDA") for line in open("x.info")), "branches")
try:
    cover.html_report(directory="html")
except AssertionError as error:
    print("html:", error)
EOF
PYTHONPATH=. venv/bin/python report.py | tee seen
grep -q '^lcov has 3 branches' seen
grep -q '^html: Had long annotations' seen
