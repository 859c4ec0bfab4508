"""A server of the Model Context Protocol, with which an AI agent debugs VMs: `server.run`.

The agent is not trusted with the host. It chooses among guests that a person has permitted, and its texts
reach GDB only as expressions and places, in a GDB whose `$_shell` is taken away.
"""
