#!/usr/bin/env bash
# A disassemble request with a negative instructionOffset gets no instruction before the address from GDB 18.1's adapter.
#
# The protocol moves the start by that many instructions, and wants exactly instructionCount of them; an editor's view of
# the code around the program counter is such a request. GDB disassembles (count + offset) instructions from the address
# on, and returns the last ones of these: for an offset of -2 and a count of 5, the second and the third at the address.
# A negative byte offset ("offset") works.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check gdb-for-pwndbg==18.1.0.post1
cat > nops.S <<'EOF'
	.globl main
	.type main, @function
main:	nop
	nop
	nop
	nop
here:	nop
	nop
	nop
	nop
	nop
	nop
	xorl %eax, %eax
	ret
	.size main, . - main
	.section .note.GNU-stack, "", @progbits
EOF
cc -g nops.S -o nops
cat > client.py <<'EOF'
import json
import os
import subprocess

argv = ["env/bin/gdb", "-nx", "-q", "-i=dap", "-iex", "set debuginfod enabled off"]
gdb = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def send(command, arguments):
    body = json.dumps({"seq": 1, "type": "request", "command": command, "arguments": arguments}).encode()
    gdb.stdin.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
    gdb.stdin.flush()


def wait(*names):
    while True:
        length = int(gdb.stdout.readline().split(b":")[1])
        gdb.stdout.readline()
        message = json.loads(gdb.stdout.read(length))
        if message.get("event", message.get("command")) in names:
            return message.get("body")


send("initialize", {"adapterID": "probe"})
send("launch", {"program": os.path.abspath("nops")})
wait("initialized")
send("setFunctionBreakpoints", {"breakpoints": [{"name": "main"}]})
send("configurationDone", {})
wait("stopped")
send("evaluate", {"expression": "output (long) &here", "context": "repl"})
here = int(wait("evaluate")["result"])
for start in ({"instructionOffset": -2}, {"instructionOffset": 1}, {"offset": -2}):
    send("disassemble", {"memoryReference": hex(here), "instructionCount": 5, **start})
    found = wait("disassemble")["instructions"]
    print(start, [int(each["address"], 16) - here for each in found])
gdb.kill()
gdb.wait()
EOF
timeout 60 python3 client.py | tee seen
cat > expected <<'EOF'
{'instructionOffset': -2} [1, 2]
{'instructionOffset': 1} [1, 2, 3, 4, 5]
{'offset': -2} [-2, -1, 0, 1, 2]
EOF
diff expected seen
