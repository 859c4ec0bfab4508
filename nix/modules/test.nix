# For the nodes of a NixOS test: `imports = [ vmdebug.nixosModules.test ]` in a node, or in the test's `defaults`.
#
# A node is itself a VM, so this module configures the node, where vmdebug.nix configures vmVariant.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.vmdebug.test;
in
{
  options.vmdebug.test = {
    shell = lib.mkOption {
      type = lib.types.bool;
      default = true;
      description = ''
        Whether to run a root shell on the serial line, and the agent of `vmdebug exec`, when vmdebug starts the node.
        When the test driver starts it, the serial line is the node's log.
      '';
    };
    clonable = lib.mkOption {
      type = lib.types.bool;
      default = false;
      description = ''
        Whether to remove the node's 9p shares, so that it can be saved and cloned. The test driver's `copy_from_vm` and
        `copy_from_host` need 9p.
      '';
    };
  };

  config = {
    # A plain GDB uses the addresses of vmlinux.
    boot.kernelParams = [ "nokaslr" ];
    virtualisation = lib.mkIf cfg.clonable {
      useNixStoreImage = true;
      writableStore = lib.mkDefault true;
      sharedDirectories = lib.mkForce { };
    };
    boot.kernelModules = [ "virtio_console" ];
    # Only the driver gives the VM a virtio console, which it uses for its own shell.
    systemd.services.vmdebug-agent = lib.mkIf cfg.shell (
      import ./agent.nix { inherit config pkgs; } // { unitConfig.ConditionPathExists = "!/dev/hvc0"; }
    );
    # NixOS's test modules disable the getty on the serial line.
    systemd.services.vmdebug-shell = lib.mkIf cfg.shell {
      description = "Root shell on the serial line";
      wantedBy = [ "multi-user.target" ];
      unitConfig.ConditionPathExists = "!/dev/hvc0";
      after = [ "systemd-user-sessions.service" ];
      restartIfChanged = false;
      serviceConfig = {
        ExecStart = "${pkgs.util-linux}/sbin/agetty --login-program ${config.services.getty.loginProgram} --autologin root --noclear --keep-baud ttyS0 115200 vt220";
        Type = "idle";
        Restart = "always";
        UtmpIdentifier = "ttyS0";
        TTYPath = "/dev/ttyS0";
        TTYReset = true;
        TTYVHangup = true;
        IgnoreSIGPIPE = false;
        SendSIGHUP = true;
      };
    };
  };
}
