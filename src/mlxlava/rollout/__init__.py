"""Playing learned lamps: roll.py rolls states and draws frames, without end and at any frame rate.

May import models, footage and playback. Start with roll.py. Beside it: weights.py (weights on disk),
drawing.py (state → frame), interpolation.py (states between learned steps), seamless.py (clips that end as
they begin), from_picture.py (picture → state), speed_matching.py (the speed of real footage), export.py (run
→ weights), library.py (lamps by name).
"""
