# Selects the kernel by name: vmdebug.kernel.name is the name of a line in vmdebug.kernels.
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

  # NixOS's list for VMs has modules that your own kernel may lack, and a missing module fails the build of the initrd.
  # Drivers that are built in count as present. The option is newer than NixOS 25.05.
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
        description = "The kernel's source, most often a flake input with flake = false; null: NixOS's own kernel, from the cache.";
      };
      version = mkOption {
        type = types.nullOr types.str;
        default = null;
        description = "Its version; only needed where `src` is a derivation, whose Makefile cannot be read before it is built.";
      };
      base = mkOption {
        type = types.either types.path types.str;
        default = "x86_64_defconfig";
        description = "What the fragments are merged onto: a configuration target of `make`, or a .config.";
      };
      fragments = mkOption {
        type = types.listOf (types.either types.path types.str);
        default = [ ];
        description = "Fragments: names of vmdebug's kconfigs/, or files. An option that does not stick fails the build.";
      };
      patches = mkOption {
        type = types.listOf types.path;
        default = [ ];
        description = "Patches, in order.";
      };
      params = mkOption {
        type = types.listOf types.str;
        default = [ ];
        description = "Kernel parameters that go with this kernel.";
      };
      stripModules = mkOption {
        type = types.nullOr types.bool;
        default = null;
        description = ''
          Whether its modules are installed without debug information, as nixpkgs installs every kernel's. With false a
          debugger has lines and types in modules too, and the modules are several times as large. null: as with true,
          and with a warning where the kernel's configuration asks for debug information.
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
      description = "The kernels that there are to choose from; `nixos`, NixOS's own, is always one.";
    };
    kernel = {
      name = mkOption {
        type = types.str;
        default = "nixos";
        description = "The one that is taken.";
      };
      params = mkOption {
        type = types.listOf types.str;
        default = [ ];
        description = "More kernel parameters, after those of the kernel's line.";
      };
      ccache = {
        enable = mkOption {
          type = types.bool;
          default = false;
          description = ''
            Whether the kernel is compiled through ccache. Where builders cannot write the cache the build's log says what to
            put where, and it is compiled without.
          '';
        };
        dir = mkOption {
          type = types.str;
          default = "/var/cache/ccache";
          description = "The cache, as builders see it.";
        };
      };
    };
  };

  config = lib.mkMerge [
    {
      vmdebug.kernels.nixos = { };
      # Last: of a parameter that is given twice, `loglevel=` by NixOS itself, the kernel takes the last one.
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
            vmdebug.kernels.${cfg.name} asks for debug information, and nixpkgs strips it from the kernel's modules: a
            debugger has neither lines nor types in them. vmdebug.kernels.${cfg.name}.stripModules = false keeps it; true
            is what happens now, without this warning.
          '';
      # The machine's own configuration lists the modules that it needs. If the kernel lacks one, the build fails,
      # since the machine would not boot.
      boot.initrd.includeDefaultModules = lib.mkDefault false;
      virtualisation.vmVariant = missingAllowed;
    })
  ];
}
