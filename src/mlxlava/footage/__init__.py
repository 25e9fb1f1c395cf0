"""Real frames: decoding, cropping, cuts, prepared footage and its batches; and the built-in lamp.

May import config, console, paths and playback. Start with prepared.py, ``prepare`` and ``Footage.batch``.
"""
