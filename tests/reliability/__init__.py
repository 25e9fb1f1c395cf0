"""Nothing lost, nothing broken: what happens to a run when something goes wrong (docs/reliability.md).

Short tests run with all others. The long ones are marked ``slow``; ``make test-reliability`` runs all.
The environment variable ``MLXLAVA_RELIABILITY`` makes them longer: so many times as many trials.
"""
