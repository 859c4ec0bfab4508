# Fragments: those of kconfigs/ by name, others by path.
{ lib }:
let
  linesOf = file: lib.splitString "\n" (builtins.readFile file);
  matches = pattern: file: lib.filter (found: found != null) (map (builtins.match pattern) (linesOf file));

  shipped = ../../kconfigs;
  names = lib.concatMap (
    file: lib.optional (lib.hasSuffix ".config" file) (lib.removeSuffix ".config" file)
  ) (lib.attrNames (builtins.readDir shipped));
in
rec {
  # The file of a fragment; the error for an unknown name lists the names.
  fileOf =
    fragment:
    if builtins.isPath fragment || lib.hasPrefix "/" (toString fragment) then
      fragment
    else if lib.elem fragment names then
      shipped + "/${fragment}.config"
    else
      throw "vmdebug: there is no fragment ${fragment}; kconfigs/ has: ${lib.concatStringsSep ", " names}";

  # The fragments and their dependencies (`# Needs:`), each once and before the first fragment that needs it.
  withNeeds =
    fragments:
    lib.unique (
      lib.concatMap (fragment: withNeeds (needsOf (fileOf fragment)) ++ [ (fileOf fragment) ]) fragments
    );
  needsOf =
    file:
    lib.concatMap (found: lib.filter (name: name != "") (lib.splitString " " (lib.head found))) (
      matches "# Needs: (.+)" file
    );

  # The options in a fragment or a .config: { CONFIG_X = "y"; CONFIG_OFF = "n"; }.
  optionsOf =
    file:
    lib.listToAttrs (
      map (found: lib.nameValuePair (lib.elemAt found 0) (lib.elemAt found 1)) (
        matches "(CONFIG_[A-Za-z0-9_]+)=([^#]*[^# ]) *" file
      )
      ++ map (found: lib.nameValuePair (lib.head found) "n") (
        matches "# (CONFIG_[A-Za-z0-9_]+) is not set" file
      )
    );
}
