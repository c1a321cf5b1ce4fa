"""Losses: pure functions in float32. What is compared at masked patches stands in `targets`."""
