# ccache for kernels that Nix builds.
#
# nixpkgs' ccacheStdenv cannot build kernels: it has no link `gcc`, which the kernel's make flags name
# (NixOS/nixpkgs#437074); and if the cache cannot be written, the wrapper fails inside Kconfig's probes, which then print
# "this assembler is not supported" (NixOS/nixpkgs#153343). Here make gets a wrapper that uses ccache if the sandbox has
# a writable cache, and otherwise runs the compiler: a build never fails because of ccache.
{
  pkgs,
  dir ? "/var/cache/ccache",
  # The compiler that ccache runs: nixpkgs builds kernels with the unwrapped compiler.
  cc ? pkgs.lib.getExe pkgs.stdenv.cc.cc,
}:
let
  compiler = pkgs.writeShellScript "cc" ''
    if [ -d ${dir} ] && [ -w ${dir} ]; then
      export CCACHE_DIR=${dir} CCACHE_UMASK=007
      # All files in the store have the same time: identify the compiler by its path.
      export CCACHE_COMPILERCHECK=string:${cc}
      exec ${pkgs.ccache}/bin/ccache ${cc} "$@"
    fi
    exec ${cc} "$@"
  '';

  setup = ''
    To have kernels that Nix builds go through ccache:
      sudo mkdir -p -m 0770 ${dir}
      sudo chown root:nixbld ${dir}
    and, as builders see nothing of the machine that is not listed, in /etc/nix/nix.conf:
      extra-sandbox-paths = ${dir}
    then: sudo systemctl restart nix-daemon
    On NixOS all of that is:
      programs.ccache = { enable = true; cacheDir = "${dir}"; };
      nix.settings.extra-sandbox-paths = [ "${dir}" ];
    With sandbox = false only the directory is needed. Remote builders need the same, each on itself.
  '';
  says = pkgs.writeText "ccache-setup" setup;
in
{
  inherit compiler setup says;

  # make uses the last CC= on its command line, and nixpkgs puts these flags last.
  makeFlags = [ "CC=${compiler}" ];

  # Runs in the builder, before it configures.
  report = ''
    if [ -d ${dir} ] && [ -w ${dir} ]; then
      echo "vmdebug: compiling through ccache, ${dir}"
    else
      echo "vmdebug: no ccache: $(id -un 2>/dev/null || id -u) cannot write ${dir} here; compiling without"
      cat ${says}
    fi
  '';

  # A build that checks whether builders can use ccache; if not, it fails and prints what to set up.
  check = pkgs.runCommand "ccache-check" { allowSubstitutes = false; preferLocalBuild = true; } ''
    if [ ! -d ${dir} ] || [ ! -w ${dir} ]; then
      echo "vmdebug: builders cannot write ${dir}" >&2
      cat ${says} >&2
      exit 1
    fi
    echo 'int probe;' > probe.c
    ${compiler} -c probe.c -o probe.o
    echo "builders compile through ccache, ${dir}" > $out
  '';
}
