#!/usr/bin/env bash
# An MCPServer of mcp 2.3.0 calls a tool although the call has an argument that the tool does not have.
#
# A Python function refuses an unknown keyword with TypeError. The tool made of it has a schema without
# "additionalProperties", and drops what it does not know, so that a client that writes "memroy" gets the default for
# memory and no word about it. A wrong type is an error.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check mcp==2.3.0
cat > server.py <<'EOF'
import asyncio

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("probe")


@server.tool()
def start(memory: int = 64) -> str:
    return f"memory {memory}"


async def main():
    (tool,) = await server.list_tools()
    print("additionalProperties in the schema:", "additionalProperties" in tool.input_schema)
    for arguments in ({"memory": 128}, {"memroy": 128}, {"memory": "much"}):
        try:
            said = (await server.call_tool("start", arguments)).content[0].text
        except ToolError:
            said = "ToolError"
        print(arguments, said)


asyncio.run(main())
EOF
env/bin/python server.py | tee seen
cat > expected <<'EOF'
additionalProperties in the schema: False
{'memory': 128} memory 128
{'memroy': 128} memory 64
{'memory': 'much'} ToolError
EOF
diff expected seen
