"""Which of the processes that torchrun started this one is, for work that is shared through files. No process group."""

from __future__ import annotations

import os
from dataclasses import dataclass

from kdcache.devices import choose_device
from kdcache.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Rank:
    """A process among those of one torchrun command.

    Attributes:
        number: 0 <= number < count; 0 coordinates and talks.
        count: processes in all.
        local: number on this machine, which chooses the GPU.
        run: names the command: equal in all its processes, different in another one that runs at the same time.
    """

    number: int
    count: int
    local: int
    run: str

    @classmethod
    def of_torchrun(cls) -> Rank | None:
        """The rank of the running process, from the environment; None when it is alone."""
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1:
            return None
        place = [os.environ.get(name, "") for name in ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")]
        return cls(
            number=int(os.environ.get("RANK", "0")),
            count=count,
            local=int(os.environ.get("LOCAL_RANK", "0")),
            run="torchrun " + " ".join(place),
        )

    def device(self, name: str) -> str:
        """The device of this rank: "auto" is its own GPU where there is one."""
        return str(choose_device(name, local_rank=self.local)) if name == "auto" else name

    def refuse(self, *, workers: int, dask: str) -> None:
        """Raise ConfigError when workers are asked for in a second way."""
        if workers > 1 or dask:
            asked = f"--dask {dask}" if dask else f"--workers {workers}"
            raise ConfigError(
                f"{asked} under torchrun with {self.count} processes: expected one way of sharing the work",
                hint="leave the option out: the ranks share the blocks",
            )
