"""Speed of ``ehr-tokenize`` against a columnar floor: ``python benchmarks/tokenize.py [--events N] [--rounds N]``.

The benchmark itself is in ``tokenization.py``. This file is only its door, because Python puts the folder of a script
first on the path: whatever imports the standard library's ``tokenize`` beside these scripts finds this file instead.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    import tokenization

    sys.exit(tokenization.main())
else:
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec

    here = Path(__file__).resolve().parent
    spec = PathFinder.find_spec("tokenize", [place for place in sys.path if Path(place).resolve() != here])
    assert spec is not None
    assert spec.loader is not None
    sys.modules[__name__] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules[__name__])
