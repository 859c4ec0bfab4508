# Functions for flakes with guests to debug; `inputs.vmdebug.lib` in other flakes.
{ nixpkgs, modules }:
let
  inherit (nixpkgs) lib;

  kernelOf = guest: guest.config.boot.kernelPackages.kernel;
  hasImages = guest: guest.config.vmdebug.diskImage or null != null;
  prefixed = prefix: lib.mapAttrs' (name: lib.nameValuePair "${prefix}-${name}");
in
rec {
  kernelFor = import ./kernel;
  gdbScriptsFor = import ./kernel/gdb-scripts.nix;

  # An existing system with vmdebug's module.
  debuggable = system: system.extendModules { modules = [ modules.vmdebug ]; };

  # Each system with each kernel: { SYSTEM-KERNEL = …; }.
  #   systems: name → list of modules; kernels: as in kernels.nix.
  guests =
    {
      systems,
      kernels,
      nixosSystem ? lib.nixosSystem,
    }:
    lib.concatMapAttrs (
      system: own:
      lib.mapAttrs' (
        kernel: _:
        lib.nameValuePair "${system}-${kernel}" (nixosSystem {
          modules = own ++ [
            modules.vmdebug
            modules.kernel
            {
              vmdebug.kernels = kernels;
              vmdebug.kernel.name = kernel;
            }
          ];
        })
      ) kernels
    ) systems;

  # The packages of some guests. The scripts are made with each guest's own `pkgs`.
  packagesFor =
    guests:
    prefixed "vm" (lib.mapAttrs (_: guest: guest.config.system.build.vm) guests)
    // gdbScripts guests
    // diskImages guests;

  # Scripts are named after the kernel: guests with the same kernel share them.
  gdbScripts =
    guests:
    prefixed "gdb-scripts" (
      lib.mapAttrs' (
        name: guest:
        lib.nameValuePair (guest.config.vmdebug.kernel.name or name) (gdbScriptsFor {
          inherit (guest) pkgs;
          kernel = kernelOf guest;
        })
      ) guests
    );

  # Images of whole disks, for systems that set vmdebug.diskImage.
  diskImages =
    guests:
    prefixed "disk-image" (
      lib.mapAttrs (_: guest: guest.config.system.build.images.${guest.config.vmdebug.diskImage}) (
        lib.filterAttrs (_: hasImages) guests
      )
    );
}
