"""Maskers compared: runs that differ in their masks alone, statistics of their scores, one page."""
