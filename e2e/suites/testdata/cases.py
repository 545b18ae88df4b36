# SPDX-License-Identifier: Apache-2.0
"""Run the cases of Python test modules and write down how each one ends.

cases.py --out FILE [--done FILE] [--timeout S] [--match GLOB…] [--without GLOB…] MODULE…

FILE gets a line of JSON when a case begins and one when it ends, so that a
case which hangs or kills the interpreter is known by name: it has begun and not
ended. Cases that --done lists, one a line, are left out, which is how the
caller goes on behind such a case. A case that takes longer than --timeout ends
the process, with the stacks of all threads on stderr.
"""

import argparse
import faulthandler
import fnmatch
import json
import os
import sys
import time
import traceback
import unittest


class Journal:
    """The output file, shared with no one: a forked child must not write to it."""

    def __init__(self, path, timeout):
        self.file = open(path, "a", buffering=1)
        self.timeout = timeout
        self.pid = os.getpid()
        self.begun = 0.0

    def write(self, **line):
        if os.getpid() == self.pid:
            self.file.write(json.dumps(line) + "\n")

    def begin(self, case):
        self.begun = time.monotonic()
        self.write(case=case, event="begin")
        faulthandler.dump_traceback_later(self.timeout, exit=True, file=sys.__stderr__)

    def end(self, case, outcome, detail=""):
        faulthandler.cancel_dump_traceback_later()
        self.write(case=case, event=outcome, detail=detail[-1500:], seconds=round(time.monotonic() - self.begun, 3))


class Result(unittest.TestResult):
    """Sends the outcome of a case to the journal; of several, the worst."""

    ranks = ["ok", "skip", "fail"]

    def __init__(self, journal):
        super().__init__()
        self.journal = journal
        self.running = None
        self.outcome, self.detail = "ok", ""

    def startTest(self, test):
        super().startTest(test)
        self.running = test.id()
        self.outcome, self.detail = "ok", ""
        self.journal.begin(self.running)

    def stopTest(self, test):
        super().stopTest(test)
        self.journal.end(self.running, self.outcome, self.detail)
        self.running = None

    def note(self, test, outcome, detail):
        if self.running is None:  # setUpClass and setUpModule are cases of their own
            self.journal.begin(test.id())
            self.journal.end(test.id(), outcome, detail)
        elif self.ranks.index(outcome) >= self.ranks.index(self.outcome):
            self.outcome, self.detail = outcome, detail

    def addError(self, test, err):
        self.note(test, "fail", self.text(err))

    addFailure = addError

    def addSubTest(self, test, subtest, err):
        if err is not None:
            self.note(test, "fail", f"{subtest.id()}\n{self.text(err)}")

    def addSkip(self, test, reason):
        self.note(test, "skip", str(reason))

    def addExpectedFailure(self, test, err):
        self.note(test, "ok", "expected failure")

    def addUnexpectedSuccess(self, test):
        self.note(test, "fail", "unexpected success")

    @staticmethod
    def text(err):
        if isinstance(err, tuple):
            return "".join(traceback.format_exception(*err))
        return str(err.getTraceback() if hasattr(err, "getTraceback") else err)


def flat(suite):
    for one in suite:
        if isinstance(one, unittest.TestSuite):
            yield from flat(one)
        else:
            yield one


class Wanted:
    """Says of a case whether it is to be run."""

    def __init__(self, done, match, without):
        self.done, self.match, self.without = done, match, without

    def __call__(self, name):
        if name in self.done or any(fnmatch.fnmatchcase(name, g) for g in self.without):
            return False
        return not self.match or name in self.match or any(fnmatch.fnmatchcase(name, g) for g in self.match)


class PytestJournal:
    """The same for test modules that need pytest."""

    def __init__(self, journal, wanted):
        self.journal, self.wanted = journal, wanted

    def pytest_collection_modifyitems(self, items):
        items[:] = [i for i in items if self.wanted(i.nodeid)]

    def pytest_runtest_logstart(self, nodeid):
        self.outcome, self.detail = "ok", ""
        self.journal.begin(nodeid)

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.outcome, self.detail = "fail", report.longreprtext
        elif report.skipped and self.outcome == "ok":
            self.outcome = "ok" if hasattr(report, "wasxfail") else "skip"

    def pytest_runtest_logfinish(self, nodeid):
        self.journal.end(nodeid, self.outcome, self.detail)


def run_unittest(args, journal, wanted):
    found = unittest.TestLoader().loadTestsFromNames(args.modules)
    cases = unittest.TestSuite(case for case in flat(found) if wanted(case.id()))
    del found
    cases.run(Result(journal))  # which drops each case when it has run


def run_pytest(args, journal, wanted):
    import pytest

    pytest.main(
        ["-q", "-p", "no:cacheprovider", "--pyargs", *args.modules],
        plugins=[PytestJournal(journal, wanted)],
    )


def prepare_cpython():
    """What python3 -m test -u network,… sets up; the network is a loopback."""
    from test import support

    support.use_resources = {"cpu", "largefile", "network", "subprocess", "walltime"}


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--out", required=True)
    p.add_argument("--done")
    p.add_argument("--timeout", type=float, default=60)
    p.add_argument("--match", action="append", default=[])
    p.add_argument("--without", action="append", default=[])
    p.add_argument("--pytest", action="store_true")
    p.add_argument("modules", nargs="+")
    args = p.parse_args()
    done = set()
    if args.done:
        with open(args.done) as f:
            done = set(f.read().splitlines())
    sys.path.pop(0)  # where this file is
    journal = Journal(args.out, args.timeout)
    if any(name.startswith("test.") for name in args.modules):
        prepare_cpython()
    (run_pytest if args.pytest else run_unittest)(args, journal, Wanted(done, set(args.match), args.without))
    journal.write(event="complete")
    sys.stdout.flush()
    os._exit(0)  # threads that a failed case left behind do not hold us up


if __name__ == "__main__":
    main()
