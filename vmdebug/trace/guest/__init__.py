"""Collects hits with the guest's own tracefs: kprobe events and tracepoints, read from its ring buffers.

`reader.c` runs in the guest, `program` compiles it, and `stream` speaks to it; `frames.h` has what it shares
with the sampler of profiles. `values` turns the operations of a compiled trace into fetch arguments and
computations on what they fetched, `fetches` and `filters` write them as tracefs reads them, and `events`
defines the events. `formats` reads the layout of records, `pages` that of the ring buffers. `hits` makes hits
of them; `tasks` and `stacks` name tasks and addresses. `collector` is the `Collector`.
"""
