"""What a W&B service that does not answer costs a training loop: 300 steps of 20 ms, a line of metrics each.

    OMP_NUM_THREADS=1 python -m tests.bench.bench_wandb_down

Without W&B; with an address that accepts and never answers; with a service that stalls once it has 50 rows. W&B's time
limits are 2 s here.
"""

import json
import socket
import tempfile
import threading
import time
from pathlib import Path

from tests.track.one_start import KEY, Asked, start
from tests.track.stand_in import StandIn, stand_in


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as name,
        stand_in() as service,
        socket.create_server(("127.0.0.1", 0), backlog=64) as hole,
    ):
        threading.Thread(target=_stall, args=(service,), daemon=True).start()
        for trouble, mode, url in (
            ("without W&B", "disabled", service.url),
            ("never answers", "online", f"http://127.0.0.1:{hole.getsockname()[1]}"),
            ("stalls midway", "online", service.url),
        ):
            asked = Asked(f"{name}/{trouble}", mode, last=300, step_s=0.02, init_timeout_s=2.0, finish_timeout_s=2.0)
            environ = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": url, "WANDB__FILE_STREAM_TRANSMIT_INTERVAL": "1"}
            times = json.loads(start(asked, home=Path(name) / "home", **environ).stdout)
            print(
                f"{trouble}: median step {1000 * times['median_s']:.1f} ms, "
                f"longest {1000 * times['longest_s']:.0f} ms, "
                f"loop {times['loop_s']:.2f} s, closing {times['close_s']:.1f} s",
                flush=True,
            )


def _stall(service: StandIn) -> None:
    while sum(len(service.history(run_id)) for run_id in list(service.runs)) < 50:
        time.sleep(0.02)
    service.stalled.set()


if __name__ == "__main__":
    main()
