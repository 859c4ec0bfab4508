#!/usr/bin/env bash
# A tool argument of type `str | None` (mcp 2.3.0) does not take every string: "null" becomes None, and '["a"]' is refused.
#
# Where an argument is no plain `str`, the SDK first tries a string as JSON, for clients that send lists as text. The string
# '["a"]' becomes a list, which is then no `str | None`: "Input should be a valid string". An argument of type `str` gets
# the same strings as they are.
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
def plain(text: str) -> str:
    return repr(text)


@server.tool()
def optional(text: str | None = None) -> str:
    return repr(text)


async def main():
    for text in ("12", "null", '["a"]', '{"a": 1}'):
        for tool in ("plain", "optional"):
            try:
                result = await server.call_tool(tool, {"text": text})
                said = result.content[0].text
            except ToolError as error:
                said = "ToolError, " + str(error).splitlines()[2].split(" [")[0].strip()
            print(f"{tool}({text!r}): {said}")


asyncio.run(main())
EOF
env/bin/python server.py | tee seen
cat > expected <<'EOF'
plain('12'): '12'
optional('12'): '12'
plain('null'): 'null'
optional('null'): None
plain('["a"]'): '["a"]'
optional('["a"]'): ToolError, Input should be a valid string
plain('{"a": 1}'): '{"a": 1}'
optional('{"a": 1}'): ToolError, Input should be a valid string
EOF
diff expected seen
