"""What lies in a shard's tar, and the index of it that DALI's own reader takes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from dist_train.data.sources.tars import tar_headers


def tar_members(path: Path) -> list[tuple[str, str, int, int]]:
    """Return the files of a WebDataset tar in order: (key, extension, data offset, size).

    Raises:
        UserError: the tar is damaged or ends early (also when it is cut between two members).
    """
    members = []
    with path.open("rb") as file:
        for member in tar_headers(file, str(path)):
            key, _, extension = member.name.partition(".")
            members.append((key, extension, member.offset_data, member.size))
    return members


def dali_index(members: Sequence[tuple[str, str, int, int]]) -> str:
    """Return the ``.idx`` file of a shard, as DALI's own ``wds2idx`` writes it (format v1.2).

    Args:
        members: what ``tar_members`` returned; the members of one sample lie side by side.
    """
    samples = [list(group) for _, group in itertools.groupby(members, key=lambda member: member[0])]
    lines = [
        " ".join(f"{extension} {offset} {size} {key}.{extension}" for key, extension, offset, size in sample)
        for sample in samples
    ]
    return "\n".join([f"v1.2 {len(samples)}", *lines, ""])
