"""What a guest does while it boots: `log` and `units` read it, `page` and `perfetto` show it."""
