"""The benchmark of ``make bench`` and ``mlxlava bench``: training, playing, preparing and scoring.

    mlxlava bench [--quick] [--only PATTERN] [--save] [--memory GB]

Every measurement has a process of its own. So the system counts its peak memory separately, and a measurement
that runs out of memory is only a line of the table. In a checkout where PyTorch is installed, the same
training steps run in PyTorch as well. They take turns with mlxlava's, so that other work on the machine slows
down both. Ctrl-C ends the suite early: the results so far are shown, and saved if that was asked for.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import itertools
import json
import platform
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlxlava.bench import chart
from mlxlava.bench.base import FRAME_SIDES, FULL_EFFORT, OWN_NAME, QUICK_EFFORT, Job, Row, SuiteState
from mlxlava.bench.harness import (
    CHECKOUT_FOLDER,
    RESULTS_FOLDER,
    Answer,
    WorkerDied,
    machine_facts,
    recommended_working_set_gb,
    total_memory_gb,
)
from mlxlava.bench.jobs import (
    first_frame_job,
    help_job,
    peak_rates_job,
    play_job,
    prepare_footage_job,
    rollout_memory_job,
    score_job,
    write_file_job,
)
from mlxlava.bench.races import pytorch_contestants, train_job
from mlxlava.bench.tables import print_tables
from mlxlava.console import say
from mlxlava.errors import UserError

SEQ_LENS = (20, 200)


def all_jobs(quick: bool, with_peer: bool) -> list[Job]:
    """All measurements. Cheap ones come first."""
    found = [help_job(), first_frame_job(), play_job("live", "lava", 64), play_job("batched", "lava", 64)]
    if not quick:
        found += [
            play_job("live", "lava", 128),
            play_job("live", "lava", 256),
            play_job("live", "duralava", 64),
            play_job("batched", "lava", 256),
        ]
    found += [
        write_file_job("raw"),
        write_file_job("mp4"),
        rollout_memory_job(),
        prepare_footage_job(),
        score_job(),
        peak_rates_job(),
    ]
    for size, recipe in itertools.product(FRAME_SIDES[:1] if quick else FRAME_SIDES, ("lava", "duralava")):
        for seq_len in SEQ_LENS[:1] if quick else SEQ_LENS:
            others = pytorch_contestants(size, quick) if with_peer and seq_len == SEQ_LENS[0] else []
            found.append(train_job(recipe, size, seq_len, others))
    return found


def result_file_name(about: Mapping[str, str], quick: bool) -> str:
    """The file name of a result. It has the time, so that names sort by time, and the kind of machine."""
    when = datetime.datetime.fromisoformat(about["time"]).strftime("%Y%m%dT%H%M%SZ")
    kind = f"{platform.system()}-{platform.machine()}-{about['device']}".lower()
    return f"{when}-{kind}-quick.json" if quick else f"{when}-{kind}.json"


def _save_result(result: Answer) -> None:
    path = RESULTS_FOLDER / result_file_name(result["machine"], result["quick"])
    try:
        path.parent.mkdir(exist_ok=True)
        # Each row is a line, so that the file is small, and readable in a diff.
        rows = ",\n".join(json.dumps(row) for row in result["rows"])
        rest = json.dumps({key: value for key, value in result.items() if key != "rows"}, indent=1)
        path.write_text(f'{rest[:-2]},\n "rows": [\n{rows}\n]}}\n', encoding="utf-8")
    except OSError as error:
        raise UserError(f"bench: cannot write {path}: {error.strerror}") from error
    say(f"bench: wrote {path}")
    chart.write_chart(result, path.with_suffix(".png"))


def _round_numbers(rows: Sequence[Row]) -> list[Row]:
    """Round figures to five digits, since more digits are noise."""
    return [
        {key: float(f"{value:.5g}") if isinstance(value, float) else value for key, value in row.items()}
        for row in rows
    ]


def main(quick: bool = False, only: str = "", save: bool = False, memory: float | None = None) -> None:
    """Run the benchmark and print tables. The last line is JSON.

    Args:
        quick: whether to measure less: fewer repeats, and training only at 64×64. It takes less than
            two minutes on two cores.
        only: regular expression; only measurements whose name it matches are made.
        save: whether to write the result to a file in ``results/``, and a chart beside it.
        memory: memory in GB that measurements may take; the memory of the machine when None.

    Raises:
        UserError: ``only`` is not a regular expression or matches nothing.
        KeyboardInterrupt: Ctrl-C was pressed. The results so far have been shown and saved.
    """
    began = time.monotonic()
    with_peer = importlib.util.find_spec("torch") is not None and CHECKOUT_FOLDER is not None
    chosen = _matching_jobs(all_jobs(quick, with_peer), only)
    about = machine_facts()
    if with_peer:
        about["torch"] = importlib.metadata.version("torch")
    elif CHECKOUT_FOLDER is None:
        say("bench: the same steps in PyTorch are part of a checkout, so they are not compared with")
    else:
        say('bench: PyTorch is not installed, so it is not compared with; pip install "mlxlava[peer]"')
    working_set = recommended_working_set_gb()
    if working_set is not None:
        about["recommended working set"] = f"{working_set:.1f} GB"
    print("\n".join(f"{name:14}  {value}" for name, value in about.items()), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        limit = total_memory_gb() if memory is None else memory
        session = SuiteState(QUICK_EFFORT if quick else FULL_EFFORT, limit, Path(folder))
        rows = _measure(chosen, session)
    if working_set is not None:
        for row in rows:
            if "left_of_16_gb" in row:
                peak = row.get("peak_arrays_gb") or row["peak_process_gb"]
                row["left_of_working_set_gb"] = working_set - peak
    result = {"benchmark": "suite", "quick": quick, "machine": about, "seconds": time.monotonic() - began}
    if session.interrupted:
        result["interrupted"] = True
    result = {**result, "rows": _round_numbers(rows)}
    print_tables(rows)
    if save:
        _save_result(result)
    print(json.dumps(result), flush=True)
    if session.interrupted:
        raise KeyboardInterrupt


def _matching_jobs(jobs: Sequence[Job], only: str) -> list[Job]:
    """The jobs whose name a pattern matches.

    Raises:
        UserError: it is not a regular expression, or matches nothing.
    """
    try:
        chosen = [job for job in jobs if re.search(only, job.name)]
    except re.error as error:
        raise UserError(f"bench: --only {only}: {error}; give a regular expression") from error
    if not chosen:
        raise UserError(f"bench: --only {only} matches none of: {', '.join(job.name for job in jobs)}")
    return chosen


def _measure(jobs: Sequence[Job], session: SuiteState) -> list[Row]:
    """The rows of all jobs; Ctrl-C ends the suite with the rows so far."""
    rows: list[Row] = []
    for number, job in enumerate(jobs):
        say(f"bench {number + 1}/{len(jobs)}: {job.name}")
        try:
            rows += job.measure(session)
        except WorkerDied as reason:
            rows.append({"name": job.name, "who": OWN_NAME, "note": str(reason)})
        except KeyboardInterrupt:
            session.interrupted = True
        if session.interrupted:
            say(f"bench: interrupted at {job.name}; this is what was measured before")
            break
    return rows
