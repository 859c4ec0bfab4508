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

  # Whether QEMU has the agent's ports: it has if vmdebug starts the node, also in the driver (`start_node`).
  hasPorts = pkgs.writeShellScript "vmdebug-has-ports" ''
    for each in /sys/class/virtio-ports/*/name; do
      read -r name < "$each" || continue
      case $name in org.vmdebug.shell.*) exit 0 ;; esac
    done
    exit 1
  '';
in
{
  options.vmdebug.test = {
    shell = lib.mkOption {
      type = lib.types.bool;
      default = true;
      description = ''
        Whether to run the agent of `vmdebug exec` when vmdebug starts the node, and outside the test driver a root shell
        on the serial line. In the driver, the serial line is the node's log.
      '';
    };
    clonable = lib.mkOption {
      type = lib.types.bool;
      default = false;
      description = ''
        Whether to remove the node's 9p shares, so that `snapshot` can save it. The test driver's `copy_from_vm` and
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
    systemd.services.vmdebug-agent = lib.mkIf cfg.shell (
      lib.recursiveUpdate (import ./agent.nix { inherit config pkgs; }) {
        serviceConfig.ExecCondition = toString hasPorts;
      }
    );
    # NixOS's test modules disable the getty on the serial line, which is the driver's. Only the driver gives the VM a
    # virtio console, which it uses for its own shell.
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
