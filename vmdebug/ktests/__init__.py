"""The kernel's own tests, run in a guest: kselftests, built from the kernel's source, and KUnit suites.

Both write KTAP, the kernel's form of the Test Anything Protocol; see Documentation/dev-tools/ktap.rst.
"""
