# The version of a kernel's source, according to its top Makefile and scripts/setlocalversion.
{ lib, src }:
let
  makefile = lib.splitString "\n" (builtins.readFile "${src}/Makefile");
  # Only the assignments at the top: further down there are others with similar names.
  head = lib.take 12 makefile;
  value =
    name:
    let
      found = lib.filter (each: each != null) (map (builtins.match "${name} = ?(.*)") head);
    in
    if found == [ ] then
      throw "vmdebug: ${src}/Makefile has no ${name}: is it a kernel source tree?"
    else
      lib.head (lib.head found);
  # The suffixes of linux-next and of the real-time patches.
  local = lib.concatMapStrings (
    name:
    lib.optionalString (lib.hasPrefix "localversion" name) (
      lib.removeSuffix "\n" (builtins.readFile "${src}/${name}")
    )
  ) (lib.attrNames (builtins.readDir src));
in
{
  version = "${value "VERSION"}.${value "PATCHLEVEL"}.${value "SUBLEVEL"}${value "EXTRAVERSION"}${local}";
}
