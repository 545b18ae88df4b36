# SPDX-License-Identifier: Apache-2.0
"""Run cases that are commands of their own and write down how each one ends.

each.py --out FILE --list FILE [--done FILE] [--timeout S] [--jobs N] [--match GLOB…] [--without GLOB…]

The list has a line of JSON for each case: its name, argv, directory and further
environment. FILE is a journal as that of cases.py. A case passes with exit
status 0, and is skipped with 77 or a TAP plan of none; what it leaves behind is
ended.
"""

import argparse
import fnmatch
import json
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

SKIPPED = re.compile(rb"^1\.\.0\b|^ok \d+ .*# skip", re.IGNORECASE | re.MULTILINE)


def end_group(child):
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def run(case, timeout, worker):
    """How the case ends, and the last of what it said."""
    env = dict(os.environ, **case.get("env", {}), TEST_THREAD_ID=str(worker))
    with tempfile.TemporaryFile() as out, tempfile.TemporaryDirectory(prefix="each-") as tmp:
        env["TMPDIR"] = tmp
        child = subprocess.Popen(case["argv"], stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                 cwd=case["dir"], env=env, start_new_session=True)
        try:
            status = child.wait(timeout)
        except subprocess.TimeoutExpired:
            status = None
        end_group(child)
        child.wait()
        out.seek(0)
        said = out.read()
    if status is None:
        return "lost", said
    if status == 77 or status == 0 and SKIPPED.search(said):
        return "skip", said
    return "ok" if status == 0 else "fail", said + b"\nstatus %d" % status


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--out", required=True)
    p.add_argument("--list", required=True)
    p.add_argument("--done")
    p.add_argument("--timeout", type=float, default=60)
    p.add_argument("--jobs", type=int, default=1)
    p.add_argument("--match", action="append", default=[])
    p.add_argument("--without", action="append", default=[])
    args = p.parse_args()
    done = set()
    if args.done:
        with open(args.done) as f:
            done = set(f.read().splitlines())
    with open(args.list) as f:
        cases = [json.loads(line) for line in f]
    lock = threading.Lock()
    workers = list(range(args.jobs))

    def wanted(name):
        if name in done or any(fnmatch.fnmatchcase(name, g) for g in args.without):
            return False
        return not args.match or name in args.match or any(fnmatch.fnmatchcase(name, g) for g in args.match)

    with open(args.out, "a", buffering=1) as journal, ThreadPoolExecutor(args.jobs) as pool:

        def write(**line):
            with lock:
                journal.write(json.dumps(line) + "\n")

        def one(case):
            with lock:
                worker = workers.pop()
            write(case=case["name"], event="begin")
            begun = time.monotonic()
            outcome, said = run(case, args.timeout, worker)
            write(case=case["name"], event=outcome, detail=said[-1500:].decode(errors="replace"),
                  seconds=round(time.monotonic() - begun, 3))
            with lock:
                workers.append(worker)

        list(pool.map(one, [c for c in cases if wanted(c["name"])]))
        write(event="complete")


if __name__ == "__main__":
    main()
