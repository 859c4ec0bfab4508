# The systems: name = its modules. Each comes with each kernel, as nixosConfigurations.SYSTEM-KERNEL.
{
  # Little else than a guest.
  base = [ ./base.nix ];
  # A physical machine: deployed to, or written to its disk; its VM tries the same configuration first.
  aethelred = [
    ./aethelred.nix
    ./aethelred-hardware.nix
    ../modules/kgdb.nix
  ];
}
