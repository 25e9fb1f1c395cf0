"""Is it a lamp, and does it stay one? Features, measures, score, drift, their tables and pictures.

May import rollout and footage. Start with score.py.
"""
