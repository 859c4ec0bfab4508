# Functions for flakes with guests to debug; `inputs.vmdebug.lib` in other flakes.
{
  nixpkgs,
  modules,
  src,
}:
let
  inherit (nixpkgs) lib;

  kernelOf = guest: guest.config.boot.kernelPackages.kernel;
  prefixed = prefix: lib.mapAttrs' (name: lib.nameValuePair "${prefix}-${name}");

  # The attributes that `guests` adds to a system, which can be read without evaluating its configuration. Other systems
  # do not have them, and a system whose function fails is treated like those.
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

  # A module for a NixOS test whose script uses vmdebug.
  testModule = import ./test.nix { inherit src modules; };

  # Adds vmdebug's module to an existing system.
  debuggable = system: system.extendModules { modules = [ modules.vmdebug ]; };

  # Combines each system with each kernel: { SYSTEM-KERNEL = …; }.
  #   systems: { NAME = modules; } or { NAME = { modules; diskImage; }; }; kernels: see kernels.nix.
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

  # The packages of the given guests. The names do not depend on the configurations, so a guest that does not
  # evaluate breaks only its own packages.
  packagesFor =
    guests:
    prefixed "vm" (lib.mapAttrs (_: guest: guest.config.system.build.vm) guests)
    // gdbScripts guests
    // diskImages guests;

  # The GDB scripts are named after the kernel, because guests with the same kernel share them.
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

  # Whole-disk images of the systems that have a diskImage.
  diskImages =
    guests:
    prefixed "disk-image" (
      lib.mapAttrs (_: diskImage) (
        lib.filterAttrs (_: guest: (notes guest).diskImage or null != null) guests
      )
    );

  # The disk image of one system, in the format that its vmdebug.diskImage selects.
  diskImage =
    guest:
    let
      kind = guest.config.vmdebug.diskImage;
      images =
        guest.config.system.build.images
          or (throw "vmdebug: this nixpkgs has no system.build.images; use NixOS 25.05 or later");
    in
    if kind == null then
      throw "vmdebug: vmdebug.diskImage of ${guest.config.system.name} is null; set it to a name of system.build.images"
    else
      images.${kind}
        or (throw "vmdebug: vmdebug.diskImage of ${guest.config.system.name} is ${kind}; there are: ${lib.concatStringsSep ", " (lib.attrNames images)}");
}
