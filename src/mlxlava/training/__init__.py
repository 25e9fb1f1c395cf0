"""Training: the loss, the training step, the loop, run folders and checkpoints, the memory that a step takes.

May import models, footage and backend. Start with objective.py, the whole loss as formulas; step.py
differentiates it, and loop.py makes steps until the run is done.
"""
