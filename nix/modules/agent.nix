# The systemd unit of the agent that runs the commands of `vmdebug exec`; vmdebug's own guests use the same source.
{ config, pkgs }:
let
  agent = pkgs.runCommandCC "vmdebug-agent" { } ''
    mkdir -p $out/bin
    $CC -Os -Wall -o $out/bin/vmdebug-agent ${../../vmdebug/channel/agent/agent.c}
  '';
in
{
  description = "Commands of vmdebug exec";
  wantedBy = [ "multi-user.target" ];
  # Start it before a getty, so that `exec` works when the console shows a prompt.
  before = [ "getty.target" ];
  # Use the environment of a login.
  script = ''
    . ${config.system.build.setEnvironment}
    export HOME=/root
    cd /root
    exec ${agent}/bin/vmdebug-agent
  '';
  serviceConfig.Restart = "always";
  # Keep background processes of commands when the agent ends.
  serviceConfig.KillMode = "process";
}
