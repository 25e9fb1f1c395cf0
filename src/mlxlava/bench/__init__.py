"""Behind ``mlxlava bench``: what training, playing, preparing and scoring take on this machine.

May import everything but the command line. Start in ``suite``, which lists the measurements; ``measures`` is
what runs in a process of its own for each of them, ``floor`` the least that a step has to compute.
"""
