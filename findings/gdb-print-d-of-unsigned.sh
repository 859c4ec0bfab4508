#!/usr/bin/env bash
# GDB 18.1's print/d of an unsigned value is negative where its top bit is set, and that of a double is not a whole number's.
#
# A guess is that /d is decimal, as without a letter. It is the value's bits as a signed number of the same size: 200 in an
# unsigned char is -56, and 0xffffffff, an unsigned int, is -1, while 4294967295, a long, is itself. 2.0 is
# 4611686018427387904. format_string(format="d") of a gdb.Value does the same. /u is what suits unsigned values.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check gdb-for-pwndbg==18.1.0.post1
printf 'int main(void) { return 0; }\n' > t.c
cc -g t.c -o t
cat > script.py <<'EOF'
import gdb

for expression in ("(unsigned char) 200", "0xffffffff", "4294967295", "2.0"):
    seen = [gdb.execute(f"output{letter} {expression}", to_string=True) for letter in ("", "/d", "/u")]
    print(expression, *seen, gdb.parse_and_eval(expression).format_string(format="d"), sep=": ")
EOF
env/bin/gdb -nx -q -batch -iex 'set debuginfod enabled off' -x script.py t | tee seen
cat > expected <<'EOF'
(unsigned char) 200: 200 '\310': -56: 200: -56
0xffffffff: 4294967295: -1: 4294967295: -1
4294967295: 4294967295: 4294967295: 4294967295: 4294967295
2.0: 2: 4611686018427387904: 4611686018427387904: 4611686018427387904
EOF
diff expected seen
