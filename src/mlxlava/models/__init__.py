"""Networks as pure functions of weights: G (generator), D (discriminator), E (encoder), R (the state step).

May import backend and config. Start with generator.py, then state_step.py. registry.py makes the networks
that a recipe names.
"""
