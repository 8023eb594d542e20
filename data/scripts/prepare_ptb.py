#!/usr/bin/env python3
"""Take the three Penn Treebank files out of Mikolov's simple-examples: `prepare_ptb.py simple-examples.tgz`.

The archive is at http://www.fit.vutbr.cz/~imikolov/rnnlm/simple-examples.tgz; it was not downloaded from there to test
this. The words are those of LDC99T42, which needs a licence. Contents are compared with the digests of the card.
"""

from __future__ import annotations

import argparse
import sys
import tarfile
from pathlib import Path, PurePosixPath

from kdcache.datasets.availability import check_data
from kdcache.datasets.cards import data_place, load_card


def main() -> int:
    """Unpack, then check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("--data-root", type=Path, default=None, help="else KDCACHE_DATA_ROOT, else ./data/cache")
    arguments = parser.parse_args()
    card, root = load_card("ptb"), data_place(arguments.data_root)
    wanted = set(card.splits.values())
    (root / card.path).mkdir(parents=True, exist_ok=True)
    with tarfile.open(arguments.archive) as archive:
        for member in archive:
            path = PurePosixPath(member.name)
            content = archive.extractfile(member) if member.isfile() else None
            if content is not None and path.name in wanted and path.parent.name == "data":
                (root / card.path / path.name).write_bytes(content.read())
    checks = check_data(card, root)
    for check in checks:
        print(f"ptb {check.split}: {check.problem or 'as published'}")
    return int(any(check.problem for check in checks))


if __name__ == "__main__":
    sys.exit(main())
