"""The benchmarks of ``mlxlava bench``: time and memory of training, playing, preparing and scoring here.

May import everything but the command line. Start in suite.py, which lists the measurements: those of training
steps (races.py) and all others (jobs.py). measures.py runs in a process of its own for each of them.
floor.py counts the least work of a training step. The other files: base.py, harness.py, tables.py, chart.py.
"""
