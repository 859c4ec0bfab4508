#!/usr/bin/env bash
# zstandard 0.25.0 (Python): `stream_reader(data)` reads one frame unless `read_across_frames` is set, but at the
# end of that frame it does not answer end of file where other bytes follow: the next read() raises ZstdError
# "Unknown frame descriptor". `decompressobj()` stops at the frame's end. A compressed Linux kernel has its size
# behind the frame.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check zstandard==0.25.0
"$work/venv/bin/python" - <<'PYTHON'
import zstandard

data = b"x" * 5_000_000
packed = zstandard.ZstdCompressor().compress(data) + len(data).to_bytes(4, "little")

whole = zstandard.ZstdDecompressor().decompressobj()
print("decompressobj:", whole.decompress(packed) == data, "at the frame's end:", whole.eof)

reader, read = zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=False), 0
try:
    while part := reader.read(1 << 20):
        read += len(part)
except zstandard.ZstdError as error:
    print("stream_reader:", read, "bytes, then", error)
    raise SystemExit(0 if read == len(data) else 1)
print("stream_reader:", read, "bytes, then end of file")
raise SystemExit(1)
PYTHON
