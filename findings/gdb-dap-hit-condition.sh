#!/usr/bin/env bash
# A hitCondition of "5" stops GDB 18.1's debug adapter at the sixth hit, and ">= 5" is a syntax error.
#
# An editor's user who gives a breakpoint the hit count 5 expects the stop at the fifth hit. GDB evaluates the text as an
# expression, and makes the number its ignore count: five hits are passed over. Forms that adapters for other languages
# take, such as ">= 5" or "% 5", are no expressions: the breakpoint is not set, and its answer says "failed".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check gdb-for-pwndbg==18.1.0.post1
cat > loop.c <<'EOF'
int sum;
void work(int hit) { sum += hit; }
int main(void) { for (int hit = 1; hit <= 12; hit++) work(hit); return 0; }
EOF
cc -g -O0 loop.c -o loop
cat > client.py <<'EOF'
import itertools
import json
import os
import subprocess

argv = ["env/bin/gdb", "-nx", "-q", "-i=dap", "-iex", "set debuginfod enabled off"]
gdb = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
numbers = itertools.count(1)


def send(command, **arguments):
    seq = next(numbers)
    body = json.dumps({"seq": seq, "type": "request", "command": command, "arguments": arguments}).encode()
    gdb.stdin.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
    gdb.stdin.flush()
    return seq


def wait(key, value):
    while True:
        header = gdb.stdout.readline().split(b":")
        gdb.stdout.readline()
        message = json.loads(gdb.stdout.read(int(header[1])))
        if message.get(key) == value:
            return message.get("body")


def ask(command, **arguments):
    return wait("request_seq", send(command, **arguments))


ask("initialize", adapterID="probe")
send("launch", program=os.path.abspath("loop"))
wait("event", "initialized")
for condition in (">= 5", "5"):
    given = [{"name": "work", "hitCondition": condition}]
    (answer,) = ask("setFunctionBreakpoints", breakpoints=given)["breakpoints"]
    print(condition, answer["reason"], answer.get("message", ""), sep=": ")
send("configurationDone")
print(wait("event", "stopped")["reason"])
frame = ask("stackTrace", threadId=1)["stackFrames"][0]["id"]
print("hit", ask("evaluate", expression="hit", frameId=frame, context="watch")["result"])
gdb.kill()
gdb.wait()
EOF
timeout 60 python3 client.py | tee seen
cat > expected <<'EOF'
>= 5: failed: A syntax error in expression, near `>= 5'.
5: pending: 
breakpoint
hit 6
EOF
diff expected seen
