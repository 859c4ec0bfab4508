"""Ways into a running guest, and the shell behind each of them.

============  ==========================================  =========================================
module        the way                                     where it works
============  ==========================================  =========================================
`agent`       virtio-serial ports, or a second UART       guests with our initramfs or NixOS module
`guest_agent` virtio-serial port of qemu-guest-agent      guests that run it
`serial`      the shell on the console                    guests with a shell there
============  ==========================================  =========================================

`guest_shell` finds out which one answers and runs commands by it.
"""
