"""End worker processes with the process that started them."""

from __future__ import annotations

import os
import threading
import time


def leave_with(parent: int) -> None:
    """End this process when the process `parent` is gone; a killed process cannot tell its workers."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
