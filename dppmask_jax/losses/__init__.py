"""Losses: pure functions in float32. Those of masked patches stand in `targets`."""
