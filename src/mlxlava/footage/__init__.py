"""Real frames: pictures and videos are read, cropped and resized; clips are drawn from them in batches.

May import config, console, paths and playback; nothing here imports MLX. Start with prepare.py (videos and
pictures → prepared footage) and dataset.py (prepared footage → batches of clips). Beside them: source.py (one
source's frames and times), video.py (containers, codecs, stamps), raster.py and colour.py (a decoded frame →
sRGB), timing.py (rates, evenly spaced times), pictures.py, crop.py, cuts.py, look.py and motion.py (what
footage shows before it is prepared). lamp.py draws the built-in lamp.
"""
