"""Measures every way of masking on images whose foreground is known, without any training."""
