# Enables kgdb on a machine's serial line; `vmdebug attach --kgdb DEVICE --guest GUEST` connects to it.
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
      description = "Whether to enable kgdb on the serial line.";
    };
    device = lib.mkOption {
      type = lib.types.str;
      default = "ttyS0";
      description = "The machine's serial port that the cable is connected to.";
    };
    speed = lib.mkOption {
      type = lib.types.ints.positive;
      default = 115200;
      description = "The speed of the serial port, in baud.";
    };
    wait = lib.mkOption {
      type = lib.types.bool;
      default = false;
      description = "Whether the kernel waits for the debugger at boot, when it has initialised the serial port.";
    };
  };

  config = lib.mkIf cfg.enable {
    boot.kernelParams = [
      "console=tty0"
      "console=${cfg.device},${toString cfg.speed}n8"
      "kgdboc=${cfg.device},${toString cfg.speed}"
      # Load the kernel at the addresses of its symbols, and do not report a stop in kgdb as a hang.
      "nokaslr"
      "nowatchdog"
    ]
    ++ lib.optional cfg.wait "kgdbwait";
    # To enter kgdb: `echo g > /proc/sysrq-trigger`, or BREAK g on the serial line.
    boot.kernel.sysctl."kernel.sysrq" = lib.mkDefault 1;
  };
}
