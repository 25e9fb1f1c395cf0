"""Judges learned lamps: measures against real footage, and how these change over a long time.

May import rollout and footage. Start with score.py; a new measure goes into measures.py. Beside them:
features.py and distances.py (what measures are computed from), drift.py (long roll-outs), report.py (tables
and one picture).
"""
