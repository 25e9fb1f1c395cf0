"""Measurements that need a checkout: the peer in PyTorch, saved results, studies behind figures in ``docs/``.

Each file is run by its name from the top of the checkout, for example ``python -m benchmarks.compare``. The
suite is part of the package (``mlxlava.bench``), so ``mlxlava bench`` works wherever mlxlava is installed.
"""
