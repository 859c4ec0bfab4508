#!/usr/bin/env bash
# Kconfiglib 14.1.0, the newest on PyPI, cannot read the Kconfig files of current kernels.
#
# Linux 5.14 and newer mark the symbol that enables loadable modules with the bare word `modules`
# (Documentation/kbuild/kconfig-language.rst; before, it was `option modules`). Kconfiglib knows only the old
# form and stops with KconfigError at that line, which every kernel since has in kernel/module/Kconfig or init/Kconfig.
# Seen: "Kconfig:4: error: couldn't parse 'modules': unrecognized construct".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check kconfiglib==14.1.0
cat > Kconfig <<'EOF'
mainmenu "As in kernel/module/Kconfig"
config MODULES
	bool "Enable loadable module support"
	modules
config DRIVER
	tristate "A driver"
EOF
sed 's/^\tmodules$/\toption modules/' Kconfig > Kconfig.old
venv/bin/python - <<'EOF'
import sys

import kconfiglib


def outcome(path):
    try:
        kconfig = kconfiglib.Kconfig(path)
        return f"read, modules symbol: {kconfig.modules.name}"
    except kconfiglib.KconfigError as error:
        return f"KconfigError: {error}"


seen = [outcome("Kconfig"), outcome("Kconfig.old")]
print(*seen, sep="\n")
sys.exit(
    seen
    != [
        "KconfigError: Kconfig:4: error: couldn't parse 'modules': unrecognized construct",
        "read, modules symbol: MODULES",
    ]
)
EOF
