"""The progress bar of a training, and the line beside it."""

from __future__ import annotations

from mlxlava.console import OnProgress, format_duration
from mlxlava.training.callbacks import Callbacks, StepReport


class ProgressBar(Callbacks):
    """Shows how much of the session's time has passed, and figures of the last step."""

    def __init__(self, update: OnProgress) -> None:
        """``update`` is the function that ``console.progress`` yields."""
        self._update = update

    def on_step(self, report: StepReport) -> None:
        """Show the step."""
        total = report.session_seconds + report.seconds_left
        self._update(report.session_seconds, total, describe_step(report))


def describe_step(report: StepReport) -> str:
    """Describe a step in a line: losses, moments of states, motion relative to real motion, pace, memory."""
    terms, parts = report.terms, [f"step {report.step}/{report.total_steps}"]
    if "loss_d" in terms:
        parts.append(f"D {terms['loss_d']:.2f} G {terms['loss_g']:.2f}")
    if "reconstruction" in terms:
        parts.append(f"again {terms['reconstruction']:.1f}")
    if "state_mean" in terms:
        state = f"{terms['state_mean']:+.2f} ± {terms['state_std']:.2f}"
        parts.append(f"state {state}, spread {terms['state_spread']:.2f}")
    if "motion_drawn" in terms:
        parts.append(f"motion {terms['motion_drawn'] / max(terms['motion_real'], 1e-9):.1f}×")
    parts += [
        f"{report.clips_per_second:.1f} clips/s",
        f"{report.peaks_gb['process']:.1f} GB",
        f"{format_duration(report.seconds_left)} left",
    ]
    return " · ".join(parts)
