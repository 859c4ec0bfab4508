#!/usr/bin/env bash
# Two drgn.Type objects (drgn 0.3.0) of one type are never equal: `object.type_ == object.type_` is False.
#
# Objects of drgn compare by value as C does, and in GDB lookup_type("int") == lookup_type("int") is True. drgn makes a new
# Type at each access and compares it by identity, so that a list or a dict of types has no other one. Equal are the
# names: type_name().
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check drgn==0.3.0
cat > script.py <<'EOF'
from drgn import Architecture, Object, Platform, Program

program = Program(Platform(Architecture.X86_64))
one = Object(program, program.int_type("int", 4, True), 1)
kind = one.type_
print("objects", one == Object(program, kind, 1))
print("types", kind == kind, one.type_ == one.type_, one.type_ in [kind], one.type_ in {kind: "int"})
print("names", one.type_.type_name() == kind.type_name())
EOF
env/bin/python script.py | tee seen
printf '%s\n' 'objects True' 'types True False False False' 'names True' | diff seen -
