#!/usr/bin/env bash
# gdb.Value(1) == 1 is True in GDB 18.1, and {1: "one"}.get(gdb.Value(1)) is None: values hash by their identity.
#
# Python wants equal objects to have equal hashes, and a good guess is that a type either has that or cannot be hashed, as
# drgn.Object. A gdb.Value can be hashed, by its address, so that no set or dict of numbers ever has it, and two values
# of the same variable are two keys. int() around the value helps.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check gdb-for-pwndbg==18.1.0.post1
cat > script.py <<'EOF'
import gdb

one = gdb.parse_and_eval("1")
print("SEEN", one == 1, one in [1], one in {1}, {1: "one"}.get(one), len({one, gdb.parse_and_eval("1")}))
EOF
env/bin/gdb -nx -q -batch -iex 'set debuginfod enabled off' -x script.py | tee seen
[ "$(cat seen)" = "SEEN True True False None 2" ]
