"""Compares learned lamps with real footage, and measures whether they change over a long time.

May import rollout and footage. Start with score.py; a new measure goes into measures.py. The other
files: features.py and distances.py (used by the measures), drift.py (long roll-outs), report.py (tables and
one picture).
"""
