# A machine that is debugged over its serial line: `vmdebug attach --kgdb DEVICE --guest GUEST` at the other end.
# The kernel wants what is in ../kgdb.config.
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
      # The symbols' addresses are the kernel's; what kgdb stops in must not be taken for a hang.
      "nokaslr"
      "nowatchdog"
    ]
    ++ lib.optional cfg.wait "kgdbwait";
    # `echo g > /proc/sysrq-trigger`, and BREAK g on the serial line, stop it.
    boot.kernel.sysctl."kernel.sysrq" = lib.mkDefault 1;
  };
}
