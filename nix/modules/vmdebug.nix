# Makes a system's VM a guest that can be debugged and saved; import it, nothing else is needed. It changes only
# the VM (virtualisation.vmVariant), not a machine with the same configuration.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.vmdebug;
in
{
  options.vmdebug = {
    enable = lib.mkOption {
      type = lib.types.bool;
      default = true;
      description = "Whether to prepare the VM of this configuration for kernel debugging.";
    };
    autologin = lib.mkOption {
      type = lib.types.nullOr lib.types.str;
      default = "root";
      description = "The user to log in automatically on the VM's serial line, for `vmdebug console`; null: none.";
    };
    clonable = lib.mkOption {
      type = lib.types.bool;
      default = true;
      description = ''
        Whether to remove the VM's 9p shares, so that `snapshot` can save it, which QEMU refuses while a
        9p file system is mounted. The Nix store is then an image (virtualisation.useNixStoreImage), built at each
        start, and there is no /tmp/shared.
      '';
    };
    diskImage = lib.mkOption {
      type = lib.types.nullOr lib.types.str;
      default = null;
      example = "raw-efi";
      description = "The image of system.build.images that lib.diskImage returns; null: none.";
    };
  };

  config = lib.mkIf cfg.enable {
    virtualisation.vmVariant = {
      virtualisation = {
        # Use a serial line, not a window.
        graphics = lib.mkDefault false;
        useNixStoreImage = lib.mkDefault cfg.clonable;
        # By default, a store image has no overlay, and the guest could not build anything.
        writableStore = lib.mkDefault true;
        # Remove the runner's own shares, too: /tmp/xchg and /tmp/shared.
        sharedDirectories = lib.mkIf cfg.clonable (lib.mkForce { });
      };
      # vmdebug finds the kernel after KASLR has moved it; a plain GDB and early breakpoints need fixed addresses.
      boot.kernelParams = [ "nokaslr" ];
      # Print all messages except debug messages on the console.
      boot.consoleLogLevel = lib.mkDefault 7;
      # NixOS's initrd is systemd's. If it cannot mount the root, it starts a shell on the console, which is locked by default.
      boot.initrd.systemd.emergencyAccess = lib.mkDefault true;
      services.getty.autologinUser = lib.mkDefault cfg.autologin;
      boot.kernelModules = [ "virtio_console" ];
      systemd.services.vmdebug-agent = import ./agent.nix { inherit config pkgs; };
      # setsid, base64 and other programs that `exec` needs on the serial line, if the agent does not run.
      environment.systemPackages = [
        pkgs.coreutils
        pkgs.util-linux
      ];
    };
  };
}
