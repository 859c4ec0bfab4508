#!/usr/bin/env bash
# GDB 18.1 uses up a breakpoint's ignore count on hits at which its Python stop() returns False.
#
# The manual calls stop() the condition of a breakpoint in Python. With a condition, an ignore count of 2 passes over two
# hits at which the condition is true. With a stop() of the same expression, every hit counts, whatever stop() returns:
# the count is gone before stop() returns True for the first time.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check gdb-for-pwndbg==18.1.0.post1
cat > loop.c <<'EOF'
int sum;
void work(int i) { sum += i; }
int main(void) { for (int i = 0; i < 12; i++) work(i); return 0; }
EOF
cc -g -O0 loop.c -o loop
cat > script.py <<'EOF'
import gdb


class Late(gdb.Breakpoint):
    def stop(self):
        return int(gdb.parse_and_eval("i")) >= 5


def stopped_at(breakpoint):
    breakpoint.ignore_count = 2
    gdb.execute("run", to_string=True)
    at = int(gdb.parse_and_eval("i"))
    gdb.execute("kill", to_string=True)
    breakpoint.delete()
    return at


by_condition = gdb.Breakpoint("work")
by_condition.condition = "i >= 5"
print("SEEN condition:", stopped_at(by_condition))
print("SEEN stop():", stopped_at(Late("work")))
EOF
env/bin/gdb -nx -q -batch -iex 'set debuginfod enabled off' -x script.py loop | grep '^SEEN' | tee seen
printf '%s\n' 'SEEN condition: 7' 'SEEN stop(): 5' | diff seen -
