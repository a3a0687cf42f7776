"""Measurements of speed and memory: ratios of things measured side by side in one run."""
