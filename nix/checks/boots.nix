# A guest, halted at its first instruction, stopped in start_kernel, and booted to a shell that answers.
#
# It wants a builder with KVM, and so goes wherever there is one: nix spreads these over its remote builders by
# their features (nix.conf(5), `system-features`).
{
  pkgs,
  vmdebug,
  name,
  guest,
}:
let
  inherit (guest.config.virtualisation) vmVariant;
  # The VM's: where the variant changes the kernel, the configuration's own is another.
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
