"""The console's log: kernel messages in it, the guest's death, the kernel's complaints."""
