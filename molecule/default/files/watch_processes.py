"""Writes down every command line seen on this host, each once, until it is stopped: what `ps` would have shown anybody.

    python3 watch_processes.py FILE
"""

import contextlib
import os
import sys
import time


def main() -> None:
    seen = set()
    with open(sys.argv[1], "a", buffering=1, encoding="utf-8") as file:
        while True:
            for name in filter(str.isdigit, os.listdir("/proc")):
                with contextlib.suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as arguments:
                    line = arguments.read().replace(b"\0", b" ").decode(errors="replace").strip()
                    if line and line not in seen:
                        seen.add(line)
                        file.write(line.replace("\n", "\\n") + "\n")
            time.sleep(0.02)


if __name__ == "__main__":
    main()
