"""Frames shown or written as time goes by: clock, session, player, screens and writers. NumPy only, no MLX.

May import config, console and paths. Start with player.py, ``run``.
"""
