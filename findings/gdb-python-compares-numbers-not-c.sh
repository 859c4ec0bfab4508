#!/usr/bin/env bash
# GDB 18.1 compares gdb.Value objects as numbers; its own expressions, and the Objects of drgn 0.3.0, compare as C does.
#
# In C, -1 becomes unsigned next to an unsigned long: (unsigned long)-1 == -1 is true, and so GDB prints 1 for it. The
# same in GDB's Python, with a number of Python or another gdb.Value, is False, although gdb.Value's arithmetic is C's:
# (unsigned long)0 - 1 is the largest one. A kernel's test for an error in a pointer, value >= -4095, is true in Python for
# every value. The same lines with drgn say what C says.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check gdb-for-pwndbg==18.1.0.post1 drgn==0.3.0
cat > script.py <<'EOF'
import gdb

largest, five = (gdb.parse_and_eval(f"(unsigned long long) {number}") for number in (-1, 5))
expressions = ("(unsigned long long) -1 == -1", "(unsigned long long) 5 >= -4095")
print("expression:", *(bool(gdb.parse_and_eval(text)) for text in expressions))
print("gdb.Value: ", largest == -1, five >= -4095, largest == five - 6, largest == gdb.parse_and_eval("-1"))
EOF
cat > with_drgn.py <<'EOF'
from drgn import Architecture, Object, Platform, Program

program = Program(Platform(Architecture.X86_64))
kind = program.int_type("unsigned long long", 8, False)
largest, five = Object(program, kind, -1), Object(program, kind, 5)
print("drgn:      ", largest == -1, five >= -4095)
EOF
env/bin/gdb -nx -q -batch -iex 'set debuginfod enabled off' -x script.py | tee seen
env/bin/python with_drgn.py | tee -a seen
cat > expected <<'EOF'
expression: True False
gdb.Value:  False True True False
drgn:       True False
EOF
diff expected seen
