# Debugging a machine over its serial line, with `vmdebug attach --kgdb DEVICE --guest GUEST` at the other end.
# The kernel needs the options in ../kgdb.config.
{ config, lib, ... }:
let
  cfg = config.vmdebug.kgdb;
in
{
  options.vmdebug.kgdb = {
    enable = lib.mkOption {
      type = lib.types.bool;
      default = true;
      description = "Whether the machine answers to kgdb.";
    };
    device = lib.mkOption {
      type = lib.types.str;
      default = "ttyS0";
      description = "The serial line of the machine that the cable is on.";
    };
    speed = lib.mkOption {
      type = lib.types.ints.positive;
      default = 115200;
      description = "Its speed, in baud.";
    };
    wait = lib.mkOption {
      type = lib.types.bool;
      default = false;
      description = "Whether the kernel waits for the debugger, as soon as it has its serial line.";
    };
  };

  config = lib.mkIf cfg.enable {
    boot.kernelParams = [
      "console=tty0"
      "console=${cfg.device},${toString cfg.speed}n8"
      "kgdboc=${cfg.device},${toString cfg.speed}"
      # Load the kernel where its symbols say, and do not take a stop in kgdb for a hang.
      "nokaslr"
      "nowatchdog"
    ]
    ++ lib.optional cfg.wait "kgdbwait";
    # To enter kgdb: `echo g > /proc/sysrq-trigger`, or BREAK g on the serial line.
    boot.kernel.sysctl."kernel.sysrq" = lib.mkDefault 1;
  };
}
