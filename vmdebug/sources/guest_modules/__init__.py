"""The modules of the kernel that runs, in the guest's /lib/modules: found, staged for depmod, and packed."""
