# Functions for flakes with guests to debug; `inputs.vmdebug.lib` in other flakes.
{ nixpkgs, modules }:
let
  inherit (nixpkgs) lib;

  kernelOf = guest: guest.config.boot.kernelPackages.kernel;
  prefixed = prefix: lib.mapAttrs' (name: lib.nameValuePair "${prefix}-${name}");

  # What `guests` says of a guest without evaluating its configuration. A system that somebody else made says nothing,
  # and neither does one that cannot even be called.
  notes =
    guest:
    let
      noted = builtins.tryEval (guest.vmdebug or { });
    in
    if noted.success then noted.value else { };
in
rec {
  kernelFor = import ./kernel;
  gdbScriptsFor = import ./kernel/gdb-scripts.nix;

  # An existing system with vmdebug's module.
  debuggable = system: system.extendModules { modules = [ modules.vmdebug ]; };

  # Each system with each kernel: { SYSTEM-KERNEL = …; }.
  #   systems: name → its modules, or { modules; diskImage; }; kernels: as in kernels.nix.
  guests =
    {
      systems,
      kernels,
      nixosSystem ? lib.nixosSystem,
    }:
    lib.concatMapAttrs (
      system: given:
      let
        own = if builtins.isList given then { modules = given; } else given;
        diskImage = own.diskImage or null;
      in
      lib.mapAttrs' (
        kernel: _:
        lib.nameValuePair "${system}-${kernel}" (
          nixosSystem {
            modules = own.modules ++ [
              modules.vmdebug
              modules.kernel
              {
                vmdebug.kernels = kernels;
                vmdebug.kernel.name = kernel;
                vmdebug.diskImage = lib.mkIf (diskImage != null) diskImage;
              }
            ];
          }
          // {
            vmdebug = { inherit kernel diskImage; };
          }
        )
      ) kernels
    ) systems;

  # The packages of some guests. No name needs the configuration of a guest, so a guest that does not evaluate
  # breaks only its own packages.
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
        lib.nameValuePair ((notes guest).kernel or name) (gdbScriptsFor {
          inherit (guest) pkgs;
          kernel = kernelOf guest;
        })
      ) guests
    );

  # Images of whole disks, for the systems of `guests` that have a diskImage.
  diskImages =
    guests:
    prefixed "disk-image" (
      lib.mapAttrs (_: diskImage) (
        lib.filterAttrs (_: guest: (notes guest).diskImage or null != null) guests
      )
    );

  # The image of one system, of the kind that its vmdebug.diskImage names.
  diskImage =
    guest:
    let
      kind = guest.config.vmdebug.diskImage;
      images =
        guest.config.system.build.images
          or (throw "vmdebug: this nixpkgs has no system.build.images; NixOS 25.05 is the first that has");
    in
    if kind == null then
      throw "vmdebug: vmdebug.diskImage of ${guest.config.system.name} is null; set it to a name of system.build.images"
    else
      images.${kind}
        or (throw "vmdebug: vmdebug.diskImage of ${guest.config.system.name} is ${kind}; there are: ${lib.concatStringsSep ", " (lib.attrNames images)}");
}
