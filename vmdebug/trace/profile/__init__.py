"""Profiles: what the CPUs of a guest execute, sampled at regular intervals, with stacks.

`by_guest` collects `raw` samples, `naming` names their addresses, `profile` is the result, and
`formats` writes it.
"""
