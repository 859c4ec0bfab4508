"""The ways into a running guest, and the shell behind each of them.

============  ==========================================  =========================================
module        way                                         works in
============  ==========================================  =========================================
`agent`       virtio-serial ports, or a second UART       guests with our initramfs or NixOS module
`guest_agent` virtio-serial port of qemu-guest-agent      guests that run it
`serial`      the shell on the console                    guests with a shell there
============  ==========================================  =========================================

`finding` finds the way that answers, `found` stores it, and `guest_shell` runs commands through it.
"""
