"""The public functions, which ``mlxlava`` offers under their names; the commands of the same names call them.

    lamp = mlxlava.load("lava")
    for frame in lamp.frames(fps=30): ...

    trained = mlxlava.train("lamp.mov", minutes=70)
    print(mlxlava.score(trained.run, "lamp.mov")["headline"])
    mlxlava.export(trained.run, "mine")

May import everything but ``bench`` and the command line. Each group of commands has a file, as in ``cli``.
Nothing is imported here: ``mlxlava`` takes a function from its file at the first use, since most load MLX.
"""
