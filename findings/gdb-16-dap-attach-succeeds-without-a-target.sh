#!/usr/bin/env bash
# GDB 16.3 as a debug adapter answers an `attach` request with success although nothing listens at the target.
#
# attach names a TCP port of this machine that nobody listens on, as an editor does when the guest has not started
# yet. GDB 16.3 (`gdb -i=dap`) sends {"command": "attach", "success": true} after its connection has failed, so an
# editor shows a session without a process. GDB 18.1 answers the same requests with success false and
# "could not connect: Connection timed out.".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
printf 'int main(void) { return 0; }\n' > t.c
cc -g t.c -o t
cat > client.py <<'EOF'
import json
import socket
import subprocess
import sys

with socket.socket() as free:  # a port that is free now, and so has no listener
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
argv = [sys.argv[1], "-nx", "-q", "-i=dap", "-iex", "set debuginfod enabled off", "-iex", "set tcp connect-timeout 2"]
gdb = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
requests = [
    ("initialize", {"adapterID": "probe"}),
    ("attach", {"program": "t", "target": f"127.0.0.1:{port}"}),
    ("configurationDone", {}),
]
for seq, (command, arguments) in enumerate(requests, 1):
    body = json.dumps({"seq": seq, "type": "request", "command": command, "arguments": arguments}).encode()
    gdb.stdin.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
gdb.stdin.flush()
while True:
    length = 0
    while line := gdb.stdout.readline().strip():
        length = int(line.split(b":")[1])
    message = json.loads(gdb.stdout.read(length))
    if message.get("command") == "attach":
        print(message["success"], message.get("message", ""))
        break
gdb.kill()
gdb.wait()
EOF
for version in 16.3.0.post6 18.1.0.post1; do
	python3 -m venv "$version"
	"$version/bin/pip" install -q --disable-pip-version-check gdb-for-pwndbg==$version
	printf '%s %s\n' "${version%.post*}" "$(timeout 60 python3 client.py "$version/bin/gdb")"
done | tee seen
grep -q '^16.3.0 True' seen
grep -q '^18.1.0 False could not connect' seen
