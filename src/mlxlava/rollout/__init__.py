"""Learned lamps that play on: weights on disk, roll-out, drawing, loops, starts from a picture, export.

May import models, footage and playback. Start with rollout.py.
"""
