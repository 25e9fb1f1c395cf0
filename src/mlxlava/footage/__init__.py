"""Real frames: pictures and videos are read, cropped and resized; clips are drawn from them in batches.

May import config, console, paths and playback; nothing here imports MLX. Start with prepare.py (videos and
pictures → prepared footage) and dataset.py (prepared footage → batches of clips). lamp.py draws the built-in
lamp.
"""
