"""Signs in the curves of a run that its training goes wrong, though no number is infinite."""

from __future__ import annotations

from mlxlava.training.curves import Curves

_JUDGED_SHARE_OF_STEPS = 0.05  # the share of the steps, at the end, whose means are judged
_LOST_SHARE_OF_ERROR = 0.5  # of the largest error; above it, what was learned is lost


def find_warning_signs(curves: Curves) -> dict[str, str]:
    """What is wrong in the last steps, by name, in words (the table in docs/training.md)."""
    count = max(1, round(_JUDGED_SHARE_OF_STEPS * len(curves.steps)))
    if len(curves.steps) < 2 or curves.last_step < 100:
        return {}
    terms = curves.terms()

    def last(name: str) -> float | None:
        found = [value for value in terms.get(name, [])[-count:] if value is not None]
        return sum(found) / len(found) if found else None

    warnings = {}
    loss, spread, drawn, real = map(last, ("loss_d", "state_spread", "motion_drawn", "motion_real"))
    if loss is not None and loss < 0.01:
        warnings["loss_d"] = (
            "The discriminator is always right (loss_d below 0.01), so the generator learns nothing any more."
        )
    if spread is not None and spread < 0.1:
        warnings["state_spread"] = "All lamps show the same (state_spread near 0)."
    if drawn is not None and real and drawn / real < 0.3:
        warnings["motion"] = f"The lamp hardly moves: {drawn / real:.2f} times the motion of the footage."
    errors = [value for value in terms.get("reconstruction", []) if value is not None]
    error = last("reconstruction")
    # When the discriminator joins in, the error counts less than before and rises. That is as it should be,
    # as long as it does not come near to where it began.
    limit = 2 * min(errors, default=0) if loss is None else _LOST_SHARE_OF_ERROR * max(errors, default=0)
    if error is not None and error > limit:
        warnings["reconstruction"] = (
            f"The reconstruction error has risen from {min(errors):.3g} to {error:.3g}."
        )
    return warnings
