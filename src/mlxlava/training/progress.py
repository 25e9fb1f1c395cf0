"""The line that stands beside the progress bar of a training."""

from __future__ import annotations

from mlxlava.console import Update, clock
from mlxlava.training.callbacks import Callbacks, StepReport


class ProgressBar(Callbacks):
    """Shows how much of the session's time is over, and how the training goes."""

    def __init__(self, update: Update) -> None:
        """``update``: of ``console.progress``."""
        self._update = update

    def on_step(self, report: StepReport) -> None:
        """Show the step."""
        total = report.session_seconds + report.seconds_left
        self._update(report.session_seconds, total, describe(report))


def describe(report: StepReport) -> str:
    """A step in a line: losses, moments of states, motion as a multiple of the real one, pace and memory."""
    terms = report.terms
    moved = terms["motion_drawn"] / max(terms["motion_real"], 1e-9)
    losses = f"D {terms['loss_d']:.2f} G {terms['loss_g']:.2f} · " if "loss_d" in terms else ""
    if "reconstruction" in terms:
        losses += f"again {terms['reconstruction']:.1f} · "
    return (
        f"step {report.step}/{report.total_steps} · {losses}state "
        f"{terms['state_mean']:+.2f} ± {terms['state_std']:.2f}, spread {terms['state_spread']:.2f} · "
        f"motion {moved:.1f}× · {report.clips_per_second:.1f} clips/s · "
        f"{report.peaks_gb['process']:.1f} GB · {clock(report.seconds_left)} left"
    )
