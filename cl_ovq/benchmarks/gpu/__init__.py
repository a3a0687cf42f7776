"""Everything that needs a GPU, in ten minutes and in order of worth: `python -m cl_ovq.benchmarks.gpu`.

A part is a list of items. A process of its own works through them and writes each result as it ends, so that an item
that fails, hangs or takes the GPU down with it costs itself alone, and a later call goes on at what is left.
"""
