#!/usr/bin/env bash
# A kretprobe event at an address has no $retval (Linux 6.1): only one at a symbol has.
#
# Documentation/trace/kprobetrace.rst allows an address wherever a symbol may stand, and `r:NAME ADDRESS` alone is accepted.
# `r:NAME ADDRESS $retval` is refused ("$retval is not available on probe"): __trace_kprobe_create sets TPARG_FL_RETURN
# only after it has parsed a symbol. SYMBOL+OFFSET of any function works if the sum is the start of a function: `_stext+OFFSET`.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
# apt drops its privileges only where the directory is open to it.
chmod 755 .
apt-get download -q -q linux-image-6.1.0-50-cloud-amd64=6.1.176-1 busybox-static=1:1.35.0-4+deb12u1+b1
for package in *.deb; do dpkg -x "$package" root; done
mkdir -p initramfs/bin initramfs/proc initramfs/tracing
cp root/bin/busybox initramfs/bin/
cat >initramfs/init <<'END'
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t tracefs tracefs /tracing
address() { /bin/busybox awk -v name="$1" '$3 == name { print "0x" $1; exit }' /proc/kallsyms; }
try() { echo "$2" >/tracing/kprobe_events && echo "$1 accepted" || echo "$1 refused"; }
try address "r:a $(address vfs_read)"
try address-retval "r:b $(address vfs_read) \$retval"
try symbol-retval 'r:c vfs_read $retval'
try offset-retval "r:d _stext+$(($(address vfs_read) - $(address _stext))) \$retval"
/bin/busybox poweroff -f
END
chmod 755 initramfs/init
(cd initramfs && find . | cpio -o -H newc --quiet) >initrd
qemu-system-x86_64 -accel tcg -m 512 -nographic -no-reboot -kernel root/boot/vmlinuz-* -initrd initrd \
	-append 'console=ttyS0 loglevel=4' </dev/null | tr -d '\r' | grep -a -E '(accepted|refused)$' | sed 's/.*\x1b\[[0-9;]*[A-Za-z]//' >said
cat said
printf '%s\n' 'address accepted' 'address-retval refused' 'symbol-retval accepted' 'offset-retval accepted' | diff said - >/dev/null
