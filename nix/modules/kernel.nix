# Selects the kernel by name: vmdebug.kernel.name names an attribute of vmdebug.kernels.
{
  config,
  lib,
  options,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  cfg = config.vmdebug.kernel;
  there = lib.attrNames config.vmdebug.kernels;
  chosen =
    config.vmdebug.kernels.${cfg.name}
      or (throw "vmdebug.kernel.name is ${cfg.name}; there are: ${lib.concatStringsSep ", " there}");

  # NixOS's list of modules for VMs may contain modules that your kernel lacks, which fails the build of the initrd.
  # Built-in drivers count as present. The option allowMissingModules is newer than NixOS 25.05.
  missingAllowed =
    if options.boot.initrd ? allowMissingModules then
      { boot.initrd.allowMissingModules = lib.mkDefault true; }
    else
      {
        nixpkgs.overlays = [
          (_: before: {
            makeModulesClosure = given: before.makeModulesClosure (given // { allowMissing = true; });
          })
        ];
      };

  row = types.submodule {
    options = {
      src = mkOption {
        type = types.nullOr types.path;
        default = null;
        description = "The kernel's source, for example a flake input with flake = false; null: NixOS's own kernel, from the binary cache.";
      };
      version = mkOption {
        type = types.nullOr types.str;
        default = null;
        description = "The kernel's version; only needed if `src` is a derivation, because its Makefile cannot be read before it is built.";
      };
      base = mkOption {
        type = types.either types.path types.str;
        default = "x86_64_defconfig";
        description = "The configuration to merge the fragments onto: a configuration target of `make`, or a .config.";
      };
      fragments = mkOption {
        type = types.listOf (types.either types.path types.str);
        default = [ ];
        description = "Fragments: names of vmdebug's kconfigs/, or files. The build fails if an option cannot be set.";
      };
      patches = mkOption {
        type = types.listOf types.path;
        default = [ ];
        description = "Patches to apply, in order.";
      };
      params = mkOption {
        type = types.listOf types.str;
        default = [ ];
        description = "Kernel parameters for this kernel.";
      };
      stripModules = mkOption {
        type = types.nullOr types.bool;
        default = null;
        description = ''
          Whether to strip debug information from the modules, as nixpkgs does for every kernel. With false, a debugger
          knows lines and types in modules too, and the modules are several times as large. null: strip it, and warn if
          the kernel's configuration enables debug information.
        '';
      };
    };
  };
in
{
  options.vmdebug = {
    kernels = mkOption {
      type = types.attrsOf row;
      default = { };
      description = "The available kernels; `nixos`, NixOS's own kernel, is always one of them.";
    };
    kernel = {
      name = mkOption {
        type = types.str;
        default = "nixos";
        description = "The name of the kernel to use.";
      };
      params = mkOption {
        type = types.listOf types.str;
        default = [ ];
        description = "More kernel parameters, added after those of the selected kernel.";
      };
      ccache = {
        enable = mkOption {
          type = types.bool;
          default = false;
          description = ''
            Whether to compile the kernel with ccache. If builders cannot write to the cache, the build's log says what to
            configure, and the kernel is compiled without ccache.
          '';
        };
        dir = mkOption {
          type = types.str;
          default = "/var/cache/ccache";
          description = "The path of the cache in the builders.";
        };
      };
    };
  };

  config = lib.mkMerge [
    {
      vmdebug.kernels.nixos = { };
      # Add them last: if a parameter occurs twice, as NixOS's own `loglevel=`, the kernel uses the last one.
      boot.kernelParams = lib.mkAfter (chosen.params ++ cfg.params);
    }
    (lib.mkIf (chosen.src != null) {
      boot.kernelPackages = pkgs.linuxPackagesFor (
        import ../kernel {
          inherit pkgs;
          inherit (chosen)
            src
            version
            base
            fragments
            patches
            ;
          stripModules = chosen.stripModules != false;
          ccacheDir = if cfg.ccache.enable then cfg.ccache.dir else null;
        }
      );
      warnings =
        lib.optional
          (chosen.stripModules == null && config.boot.kernelPackages.kernel.vmdebug.modulesLoseDwarf or false)
          ''
            vmdebug.kernels.${cfg.name} enables debug information, but nixpkgs strips it from the modules, so a debugger
            knows neither lines nor types in them. Set vmdebug.kernels.${cfg.name}.stripModules = false to keep it, or
            true to hide this warning.
          '';
      # The machine's configuration lists the modules that it needs to boot. The build fails if the kernel lacks one.
      boot.initrd.includeDefaultModules = lib.mkDefault false;
      virtualisation.vmVariant = missingAllowed;
    })
  ];
}
