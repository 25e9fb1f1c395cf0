"""The benchmarks of ``mlxlava bench``: time and memory of training, playing, preparing and scoring here.

May import everything but the command line. Start in ``suite``, which lists the measurements. ``measures``
runs in a process of its own for each measurement. ``floor`` counts the least work of a training step.
"""
