"""Which lines and branches of the kernel a guest executed.

`wire` is the layout of the memory that vmdebug shares with the plugin in QEMU, and `link` the connection.
`line_program` decodes line tables, `code` reads them and the conditional jumps of a file, `mapping` turns
blocks of code into lines, and `kernel_code` knows the kernel and its modules. `library` has the data file
and the reports of coverage.py, `reports` says whether that is installed, `source_text` looks at C source, and
`changes` at the changed lines of a patch.
"""
