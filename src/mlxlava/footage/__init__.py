"""Reads videos and pictures, crops and resizes their frames, and gives batches of clips.

May import config, console, paths and playback. Nothing here imports MLX. Start with prepare.py (videos and
pictures → prepared footage) and dataset.py (prepared footage → batches of clips). The other files: source.py
(frames and times of one source), video.py (containers, codecs, time stamps), raster.py and colour.py (a
decoded frame → sRGB), timing.py (frame rates, evenly spaced times), pictures.py, crop.py, cuts.py, look.py
and motion.py (examine footage before it is prepared). simulated_lamp.py draws the built-in lamp.
"""
