"""`--engine slurm`: the script of an array whose tasks are shards of the same call."""

import math
import shlex
from collections.abc import Sequence

SPARE = 600
"""Seconds that a task may take beyond --max-time: starting, and the piece it is at."""

SCRIPT = """#!/bin/bash
#SBATCH --job-name=sepcli
#SBATCH --array=1-{tasks}
#SBATCH --cpus-per-task={cores}
{wishes}#SBATCH --output={logs}/%A-%a.log
# Each task does its shard. Submit it again until nothing is left: what is finished is not done again.
set -euo pipefail
export OMP_NUM_THREADS="${{SLURM_CPUS_PER_TASK:-{cores}}}"
cd {folder}
exec {command} \\
  --shard "$SLURM_ARRAY_TASK_ID/{tasks}" \\
  --journal {logs}/"$SLURM_ARRAY_TASK_ID.jsonl"{inputs}
"""


def script(
    command: Sequence[str],
    inputs: Sequence[str],
    *,
    tasks: int,
    folder: str,
    logs: str,
    gpu: bool,
    seconds: float | None,
    cores: int,
) -> str:
    """The text of the script. The number of shards stands in it: a task that is submitted alone keeps its shard.

    `inputs` come last, behind all options: their names may begin with a dash.
    """
    wishes = "#SBATCH --gres=gpu:1\n" if gpu else ""
    if seconds is not None:
        minutes = math.ceil((seconds + SPARE) / 60)
        wishes += f"#SBATCH --time={minutes // 60:02}:{minutes % 60:02}:00\n"
    return SCRIPT.format(
        tasks=tasks,
        cores=cores,
        wishes=wishes,
        logs=shlex.quote(logs),
        folder=shlex.quote(folder),
        command=shlex.join(command),
        inputs=f" \\\n  -- {shlex.join(inputs)}" if inputs else "",
    )
