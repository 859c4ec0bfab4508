# A guest that can be debugged and cloned. Importing it is all it takes; it changes the VM, and nothing of a
# machine that the same configuration runs on.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.vmdebug;

  # Runs the commands of `vmdebug exec`; one source with the guests that vmdebug makes itself.
  agent = pkgs.runCommandCC "vmdebug-agent" { } ''
    mkdir -p $out/bin
    $CC -Os -Wall -o $out/bin/vmdebug-agent ${../../vmdebug/channel/agent/agent.c}
  '';
in
{
  options.vmdebug = {
    enable = lib.mkOption {
      type = lib.types.bool;
      default = true;
      description = "Whether the VM of this configuration is made for debugging its kernel.";
    };
    autologin = lib.mkOption {
      type = lib.types.nullOr lib.types.str;
      default = "root";
      description = "Who is logged in on the VM's serial line; `vmdebug exec` and `console` need a shell there. null: nobody.";
    };
    clonable = lib.mkOption {
      type = lib.types.bool;
      default = true;
      description = ''
        Whether the VM goes without 9p, so that it can be saved, cloned and migrated: QEMU refuses all three where a 9p
        file system is mounted. The Nix store is then an image (virtualisation.useNixStoreImage), made anew at each start,
        and there is no /tmp/shared.
      '';
    };
    diskImage = lib.mkOption {
      type = lib.types.nullOr lib.types.str;
      default = null;
      example = "raw-efi";
      description = "The member of system.build.images that lib.diskImage returns; null: none.";
    };
  };

  config = lib.mkIf cfg.enable {
    virtualisation.vmVariant = {
      virtualisation = {
        # A serial line, and userspace that talks to it, not a window.
        graphics = lib.mkDefault false;
        useNixStoreImage = lib.mkDefault cfg.clonable;
        # NixOS's default is a store without an overlay where it is an image, and then nothing can be built in the guest.
        writableStore = lib.mkDefault true;
        # Those of the runner itself too: /tmp/xchg and /tmp/shared.
        sharedDirectories = lib.mkIf cfg.clonable (lib.mkForce { });
      };
      # vmdebug finds a kernel that was moved; a plain GDB, and breakpoints set before it moves, do not.
      boot.kernelParams = [ "nokaslr" ];
      # What a kernel says is what one wants to read.
      boot.consoleLogLevel = lib.mkDefault 7;
      services.getty.autologinUser = lib.mkDefault cfg.autologin;
      boot.kernelModules = [ "virtio_console" ];
      # Before a getty: once the console has a prompt, commands have a way in.
      systemd.services.vmdebug-agent = {
        description = "Commands of vmdebug exec";
        wantedBy = [ "multi-user.target" ];
        before = [ "getty.target" ];
        # A login's environment, not a service's.
        script = ''
          . ${config.system.build.setEnvironment}
          export HOME=/root
          cd /root
          exec ${agent}/bin/vmdebug-agent
        '';
        serviceConfig.Restart = "always";
        # A command's background processes outlive the agent.
        serviceConfig.KillMode = "process";
      };
      # setsid, base64 and their like, by which commands come in over the serial line without the agent.
      environment.systemPackages = [
        pkgs.coreutils
        pkgs.util-linux
      ];
    };
  };
}
