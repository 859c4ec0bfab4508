# A guest that halts at its first instruction, stops in start_kernel, and boots to a shell that answers.
#
# It needs a builder with KVM: nix distributes these checks to remote builders by their features (nix.conf(5),
# `system-features`).
{
  pkgs,
  vmdebug,
  name,
  guest,
}:
let
  inherit (guest.config.virtualisation) vmVariant;
  # The VM's kernel, which differs from the configuration's own if the variant changes it.
  inherit (vmVariant.system.build) kernel;
in
pkgs.runCommand "boots-${name}"
  {
    nativeBuildInputs = [ vmdebug ];
    requiredSystemFeatures = [ "kvm" ];
  }
  ''
    export HOME=$TMPDIR XDG_RUNTIME_DIR=$TMPDIR/run
    mkdir -m 0700 $XDG_RUNTIME_DIR
    cat > vmdebug.toml <<END
    [guest.${name}]
    source = "${guest.config.system.build.vm}"
    vmlinux = "${kernel.dev}/vmlinux"
    END
    vmdebug run ${../../examples/boots.py} --guest ${name} --halt --timeout 900 | tee $out
  ''
