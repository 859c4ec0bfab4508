#!/usr/bin/env bash
# What gdb.Inferior.read_memory() returns (GDB 18.1) is never equal to a bytes object, even one with the same bytes.
#
# It is a memoryview, and Python compares a memoryview with bytes by value: memoryview(b"hello") == b"hello" is True. But
# GDB's has the format "c", not "B", so that its items are bytes of length 1 rather than numbers, and none of them is equal
# to a number. A test for a magic number or a banner fails without an error; bytes() around the result helps.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check gdb-for-pwndbg==18.1.0.post1
printf 'char text[] = "hello";\nint main(void) { return 0; }\n' > t.c
cc -g t.c -o t
cat > script.py <<'EOF'
import gdb

gdb.execute("starti", to_string=True)
read = gdb.selected_inferior().read_memory(int(gdb.parse_and_eval("(unsigned long) &text")), 5)
print("SEEN", type(read).__name__, read.format, repr(read[0]))
print("SEEN", memoryview(b"hello") == b"hello", read == b"hello", b"hello" == read, bytes(read) == b"hello")
EOF
env/bin/gdb -nx -q -batch -iex 'set debuginfod enabled off' -x script.py t | grep '^SEEN' | tee seen
printf '%s\n' "SEEN memoryview c b'h'" 'SEEN True False False True' | diff seen -
