# Fragments of kconfigs/, by name, and one's own, by path.
{ lib }:
let
  shipped = ../../kconfigs;
  names = lib.concatMap (
    file: lib.optional (lib.hasSuffix ".config" file) (lib.removeSuffix ".config" file)
  ) (lib.attrNames (builtins.readDir shipped));
in
{
  # The file of a fragment; an unknown name is answered with those that there are.
  fileOf =
    fragment:
    if builtins.isPath fragment || lib.hasPrefix "/" (toString fragment) then
      fragment
    else if lib.elem fragment names then
      shipped + "/${fragment}.config"
    else
      throw "vmdebug: there is no fragment ${fragment}; those of kconfigs/: ${lib.concatStringsSep ", " names}";

  # What a fragment sets: { CONFIG_X = "y"; }.
  optionsOf =
    file:
    let
      setting = line: builtins.match "(CONFIG_[A-Za-z0-9_]+)=([^#]*[^# ]) *" line;
      settings = lib.filter (found: found != null) (
        map setting (lib.splitString "\n" (builtins.readFile file))
      );
    in
    lib.listToAttrs (
      map (found: lib.nameValuePair (lib.elemAt found 0) (lib.elemAt found 1)) settings
    );
}
