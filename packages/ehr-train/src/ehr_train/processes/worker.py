"""One process of several: ``python -m ehr_train.processes.worker FOLDER``, started by `ehr_train.processes.spawn`.

It trains the job in FOLDER/job.json as the rank that its environment names, leaves an error as FOLDER/error_RANK.json,
and ends when the process that started it does.
"""

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from ehr_core.errors import EhrError
from ehr_core.formats.folder import read_json, write_json

from ehr_train.processes.stops import Stopped, end_with_parent


def main(folder: Path) -> int:
    """Exit status 0, or 1 after writing the error."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which sends SIGTERM
    rank = int(os.environ["RANK"])
    try:
        from ehr_train.job import TrainJob
        from ehr_train.launch import train_here
        from ehr_train.processes.group import Group

        group = Group.join()
        train_here(TrainJob.from_plain(read_json(folder / "job.json", dict[str, Any])))
        group.leave()
        return 0
    except EhrError as error:
        report = {"rank": rank, "kind": type(error).__name__, "message": str(error)}
        report["stopped"] = isinstance(error, Stopped)
    except Exception as error:
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        report = {"rank": rank, "kind": "EhrError", "message": f"process {rank} failed: {reason}"}
        report["traceback"] = traceback.format_exc()
    write_json(folder / f"error_{rank}.json", report)
    return 1


if __name__ == "__main__":
    status = main(Path(sys.argv[1]))
    sys.stderr.flush()
    os._exit(status)  # a process group that lost a member may hang while Python takes it down
