"""Shows and writes frames: clock, session, player, keys, screens and writers. It does not use MLX.

May import config, console, paths and resize. Start with player.py, ``play_lamp``: it takes frames from a
session and gives them to a screen (screens/), a file (writers/) or both.
"""
