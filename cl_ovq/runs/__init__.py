"""Runs of experiments: start with `run.py`, where one run stands on one page."""
