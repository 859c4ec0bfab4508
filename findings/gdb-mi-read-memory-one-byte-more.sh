#!/usr/bin/env bash
# Where memory ends inside the range, -data-read-memory-bytes (GDB 18.1) answers with the part before it, and one byte more.
#
# The manual says that the command returns the parts that can be read, so a read of 8 bytes at 4 bytes before a hole should
# give 4. It gives 5: "end" is one past the first address of the hole, and the last byte of "contents" is not from the
# program. A read that ends at the hole is exact. What is mapped again behind the hole is not in the answer.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check gdb-for-pwndbg==18.1.0.post1 pygdbmi==0.11.0.0
cat > hole.c <<'EOF'
#include <sys/mman.h>
#include <unistd.h>
char *start, *hole;
void mapped(void) {}
int main(void)
{
	long page = sysconf(_SC_PAGESIZE);
	start = mmap(0, 3 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	hole = start + page;
	munmap(hole, page);
	mapped();
	return 0;
}
EOF
cc -g hole.c -o hole
cat > client.py <<'EOF'
import itertools
import subprocess

from pygdbmi.gdbmiparser import parse_response

argv = ["env/bin/gdb", "-nx", "-q", "--interpreter=mi4", "-iex", "set debuginfod enabled off", "hole"]
gdb = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
tokens = itertools.count(1)


def ask(command, until="result"):
    token = next(tokens)
    print(f"{token}{command}", file=gdb.stdin, flush=True)
    for line in gdb.stdout:
        if line.startswith("(gdb)"):
            continue
        record = parse_response(line.strip())
        if until in (record["type"], record["message"]):
            return record["payload"]


ask("-break-insert mapped")
ask("-exec-run", until="stopped")
hole = int(ask('-data-evaluate-expression "(unsigned long) hole"')["value"])
for expression, length in (("hole - 4", 4), ("hole - 4", 8), ("start", 3 * 4096)):
    (part,) = ask(f'-data-read-memory-bytes "{expression}" {length}')["memory"]
    print(f"{expression}, {length}:", len(part["contents"]) // 2, "bytes, past the hole's start:", int(part["end"], 16) - hole)
ask("-gdb-exit")
gdb.wait()
EOF
timeout 60 env/bin/python client.py | tee seen
cat > expected <<'EOF'
hole - 4, 4: 4 bytes, past the hole's start: 0
hole - 4, 8: 5 bytes, past the hole's start: 1
start, 12288: 4097 bytes, past the hole's start: 1
EOF
diff expected seen
