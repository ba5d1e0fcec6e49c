"""Start N processes of one command on this machine, joined into one JAX run.

    python scripts/launch_local_cluster.py 2 -- jaxkit train --name two

Each process gets the variables that JAX reads (`JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES`,
`JAX_PROCESS_ID`); on CPU they speak over gloo. The output of process 0 is shown; that of another
process only if it fails. SIGTERM and Ctrl-C are handed on.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile


def free_port() -> int:
    """A TCP port on loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch(num_processes: int, command: list[str]) -> int:
    """Run the command in every process and return the first exit code that is not 0.

    When one process fails, the others are ended: they would wait for it for ever.
    """
    address = f"127.0.0.1:{free_port()}"
    logs = [tempfile.TemporaryFile() for _ in range(1, num_processes)]
    processes: list[subprocess.Popen] = []
    for process_id in range(num_processes):
        environment = os.environ | {
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(num_processes),
            "JAX_PROCESS_ID": str(process_id),
        }
        output = None if process_id == 0 else logs[process_id - 1]
        processes.append(subprocess.Popen(command, env=environment, stdout=output, stderr=output))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda n, _: [p.send_signal(n) for p in processes])
    waiting = dict(enumerate(processes))
    failed: tuple[int, int] | None = None
    while waiting:
        for process_id, process in list(waiting.items()):
            try:
                code = process.wait(timeout=0.05)
            except subprocess.TimeoutExpired:
                continue
            del waiting[process_id]
            if code and failed is None:
                failed = (process_id, code)
                for other in waiting.values():
                    other.terminate()
    if failed is None:
        return 0
    process_id, code = failed
    if process_id:
        log = logs[process_id - 1]
        log.seek(0)
        sys.stderr.write(f"process {process_id} ended with {code}:\n{log.read().decode()}\n")
    return code if code > 0 else 128 - code


if __name__ == "__main__":
    if len(sys.argv) < 4 or sys.argv[2] != "--" or not sys.argv[1].isdigit() or sys.argv[1] == "0":
        sys.exit(f"usage: {sys.argv[0]} N -- COMMAND [ARGUMENT ...]")
    sys.exit(launch(int(sys.argv[1]), sys.argv[3:]))
