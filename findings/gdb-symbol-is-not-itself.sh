#!/usr/bin/env bash
# In GDB 16.3, the gdb.Symbol of a function is not equal to the gdb.Symbol of the same function; in GDB 17.2 it is.
#
# Every call makes a new object, and gdb.Symbol and gdb.Symtab have no comparison of their own, unlike gdb.Frame, gdb.Type and
# gdb.Block. So `frame.function() == gdb.lookup_global_symbol("main")` is False in main. In 17.2 each has one object
# in Python; a gdb.Symtab_and_line still has not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
printf 'int main(void) { return 0; }\n' > t.c
cc -g t.c -o t
cat > script.py <<'EOF'
import gdb

gdb.execute("break main", to_string=True)
gdb.execute("run", to_string=True)
frame = gdb.selected_frame()
pairs = {
    "symbol": (frame.function(), gdb.lookup_global_symbol("main")),
    "symtab": (frame.find_sal().symtab, frame.find_sal().symtab),
    "line": (frame.find_sal(), frame.find_sal()),
    "frame": (frame, gdb.selected_frame()),
}
print("SEEN", gdb.VERSION[:4], *(f"{what} {one == other}" for what, (one, other) in pairs.items()))
EOF
for version in 16.3.0.post6 17.2.0.post5; do
	python3 -m venv "$version"
	"$version/bin/pip" install -q --disable-pip-version-check gdb-for-pwndbg==$version
	"$version/bin/gdb" -nx -q -batch -iex 'set debuginfod enabled off' -x script.py t | grep '^SEEN'
done | tee seen
cat > expected <<'EOF'
SEEN 16.3 symbol False symtab False line False frame True
SEEN 17.2 symbol True symtab True line False frame True
EOF
diff expected seen
