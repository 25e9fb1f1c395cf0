"""Learning: the step and its losses, the loop, run folders and checkpoints, the memory that a step takes.

May import models, footage and backend. Start with step.py, ``Trainer``; loop.py calls it.
"""
