#!/usr/bin/env bash
# `make olddefconfig` of Linux 6.1 with KCONFIG_CONFIG=trial.config also writes include/config/auto.conf.
#
# It does so if that file does not exist yet, from trial.config. The file is newer than the directory's own .config,
# so the next `make` takes trial.config's values from it, and does not read .config: an option that .config has and
# trial.config has not is missing in the build. With KCONFIG_AUTOCONFIG naming an existing file, nothing is written.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get download -qq linux-source-6.1=6.1.192-3
dpkg --fsys-tarfile linux-source-6.1_*.deb | tar -xO ./usr/src/linux-source-6.1.tar.xz | tar -xJ
source=$work/linux-source-6.1
for name in plain kept; do
	make -s -C "$source" O="$work/$name" allnoconfig
	rm -f "$name/include/config/auto.conf"
	grep -v PRINTK "$name/.config" >"$name/trial.config"
	echo '# CONFIG_PRINTK is not set' >>"$name/trial.config"
	sed -i 's/.*CONFIG_EXPERT.*/CONFIG_EXPERT=y/' "$name/trial.config"
done
KCONFIG_CONFIG=$work/plain/trial.config make -s -C "$source" O="$work/plain" olddefconfig
KCONFIG_CONFIG=$work/kept/trial.config KCONFIG_AUTOCONFIG=$work/kept/trial.config \
	make -s -C "$source" O="$work/kept" olddefconfig
grep -H CONFIG_PRINTK= plain/.config
ls plain/include/config/auto.conf
if grep CONFIG_PRINTK= plain/include/config/auto.conf; then exit 1; fi
if ls kept/include/config/auto.conf; then exit 1; fi
