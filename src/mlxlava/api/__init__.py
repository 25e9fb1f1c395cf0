"""The public functions of ``mlxlava``. The commands of the same names call them.

    lamp = mlxlava.load("lava")
    for frame in lamp.frames(fps=30): ...

    trained = mlxlava.train("lamp.mov", minutes=70)
    print(mlxlava.score(trained.run, "lamp.mov")["headline"])
    mlxlava.export(trained.run, "mine")

May import everything but ``bench`` and the command line. Each group of commands has a file, as in ``cli``.
Nothing is imported here, since most of the files load MLX. ``mlxlava`` imports a function at its first use.
"""
