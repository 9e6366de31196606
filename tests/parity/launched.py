"""`cctuning` as accelerate launches it, on processors alone.

accelerate gives FSDP and DeepSpeed to accelerators only; all that they need beyond that, torch's gloo processes have.
So it is told here that a processor is one. Nothing else differs from what a user starts.
"""

from __future__ import annotations

import os
import sys
from unittest.mock import patch

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType

from cctuning.cli import main


def on_processors() -> None:
    """Make accelerate take gloo processes for devices, for the engines that it keeps from them."""

    def backend(self: PartialState, *args: object, **kwargs: object) -> tuple[str, DistributedType]:
        return "gloo", DistributedType.MULTI_GPU

    def device(self: PartialState) -> None:
        self.device = torch.device("cpu")

    patch.object(PartialState, "_prepare_backend", backend).start()  # for this process
    patch.object(PartialState, "set_device", device).start()


if __name__ == "__main__":
    torch.set_num_threads(1)
    if any(os.environ.get(f"ACCELERATE_USE_{engine}", "").lower() == "true" for engine in ("FSDP", "DEEPSPEED")):
        on_processors()
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # as workers.py leaves, and for the same reason
