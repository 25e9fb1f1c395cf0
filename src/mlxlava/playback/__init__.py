"""Frames shown or written as time goes by: clock, session, player, keys, screens and writers. No MLX.

May import config, console, paths and resize. Start with player.py, ``run``: it takes frames from a session
and gives them to a screen (screens/), a file (writers/) or both.
"""
