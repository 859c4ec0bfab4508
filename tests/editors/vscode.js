// Drives `vmdebug dap` with VS Code's own library for tests of debug adapters.
// Environment: VMD_PORT (of the adapter), VMD_FILE, VMD_LINE, VMD_VM, VMD_RESULT (a file).
"use strict";
const fs = require("fs");
const { DebugClient } = require("@vscode/debugadapter-testsupport");

async function main() {
  const path = process.env.VMD_FILE;
  const line = Number(process.env.VMD_LINE);
  const client = new DebugClient("vmdebug", "dap", "vmdebug");
  client.defaultTimeout = 120000;
  const seen = {};
  await client.start(Number(process.env.VMD_PORT));
  const stopped = client.hitBreakpoint(
    { guest: "builtin", vm: process.env.VMD_VM, name: "from VS Code's library" },
    { path, line, verified: true },
  );
  await stopped;
  const stack = await client.stackTraceRequest({ threadId: 1 });
  const frame = stack.body.stackFrames[0];
  seen.frame = [frame.name, frame.line, frame.source.path];
  const value = await client.evaluateRequest({ expression: "filename", frameId: frame.id, context: "watch" });
  seen.filename = value.body.result;
  const scopes = await client.scopesRequest({ frameId: frame.id });
  seen.scopes = scopes.body.scopes.map((each) => each.name);
  const stepped = client.waitForEvent("stopped", 120000);
  await client.nextRequest({ threadId: 1 });
  seen.step = (await stepped).body.reason;
  await client.disconnectRequest({});
  fs.writeFileSync(process.env.VMD_RESULT, JSON.stringify(seen));
}

main().then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
