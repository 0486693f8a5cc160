"""One thread a process, set before torch is imported: bits depend on the number of threads."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
