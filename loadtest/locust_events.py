"""What happens around a run of locust: plan, record, gather, judge, report. Needs locust."""

import logging
import signal
import sys
import time
from pathlib import Path
from typing import Any

import gevent  # type: ignore[import-untyped] # it has none
import msgspec
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from loadtest import locust_users
from loadtest.locust_audit import EXIT_UNJUDGED, AuditReport, verdict_of, write_json
from loadtest.locust_gather import FINISH, PART, Gatherer, Sender
from loadtest.locust_options import Plan, Secrets, check
from loadtest.locust_report import with_section
from loadtest.locust_run import Run, make_plan, marker
from loadtest.server_facts import Audit, Sale, ServerSilent

logger = logging.getLogger("rushgate.loadtest")

PLAN = "rushgate_plan"  # among the options that locust hands to its workers
EX_USAGE = 2
REPORT_PATH = "/stats/report"


class Conductor:
    """One a process: it listens to locust's events."""

    def __init__(self) -> None:
        self.report: AuditReport | None = None  # of the last run; the master's, or of the only process
        self._secret: Secrets | None = None
        self._run: Run | None = None
        self._shared = False
        self._sale: Sale | None = None
        self._before: Audit | None = None
        self._plan: Plan | None = None
        self._gatherer: Gatherer | None = None

    def on_init(self, environment: Environment, **_: Any) -> None:
        """The options are right, and everybody has the weight that they say; otherwise the process ends with 2."""
        options: Any = environment.parsed_options
        runner = environment.runner
        try:
            self._secret = Secrets.from_env()
            if not isinstance(runner, WorkerRunner) and options.headless:
                check(options)
        except ValueError as exc:
            print(f"loadtest: {exc}", file=sys.stderr)
            sys.exit(EX_USAGE)
        weights: dict[Any, int] = {
            locust_users.Buyer: options.buyers,
            locust_users.Bot: options.bots,
            locust_users.Channel: options.channels,
        }
        for user, weight in weights.items():
            user.weight = weight
        environment.user_classes = [user for user in environment.user_classes if weights.get(user, 1)]
        if not isinstance(runner, WorkerRunner):
            # locust installs a handler of its own when a shape is over: too late. As Ctrl-C till then.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        if isinstance(runner, MasterRunner):
            runner.register_message(PART, self._on_part)
        elif isinstance(runner, WorkerRunner):
            runner.register_message(FINISH, self._on_finish, concurrent=True)
        if environment.web_ui is not None and environment.web_ui.app is not None:
            environment.web_ui.app.after_request(self._into_web_report)

    def on_start(self, environment: Environment, **_: Any) -> None:
        """This process records, and the master knows the campaign as it was before."""
        options: Any = environment.parsed_options
        secret = self._secret
        assert secret is not None  # noqa: S101 - on_init has read them
        runner, self.report = environment.runner, None
        if isinstance(runner, WorkerRunner):
            self._start_worker(runner, msgspec.convert(getattr(options, PLAN), Plan), secret)
            return
        try:
            check(options)
            processes = runner.worker_count if isinstance(runner, MasterRunner) else 1
            self._plan, self._sale, self._before = make_plan(options, secret, processes)
        except (ValueError, ServerSilent, OSError) as exc:
            # Nothing was sent. locust has no way to refuse a run from here: its users find none, and go home.
            self._plan = None
            environment.process_exit_code = EX_USAGE
            logger.error("the run cannot begin: %s", exc)
            gevent.spawn_later(0.1, runner.quit if options.headless else runner.stop)  # type: ignore[union-attr]
            return
        setattr(options, PLAN, msgspec.to_builtins(self._plan))
        logger.info("run %s: T0 is in %.1f s", self._plan.run, max(0.0, self._plan.t0_wall_ms / 1000 - time.time()))
        if isinstance(runner, MasterRunner):
            self._gatherer = Gatherer(self._plan.run, Path(self._plan.folder))
        else:
            self._begin(self._plan, secret, "1", Path(self._plan.folder))

    def on_stop(self, environment: Environment, **_: Any) -> None:
        """The history is whole; where all of them come together, they are judged."""
        runner = environment.runner
        if isinstance(runner, WorkerRunner):
            self._stop_worker(runner)
            return
        if self._plan is None or self._sale is None or self._secret is None:
            return
        files, missing = [], []
        if isinstance(runner, MasterRunner):
            assert self._gatherer is not None  # noqa: S101 - made with the plan
            runner.send_message(FINISH, {"run": self._plan.run})
            self._gatherer.wait()
            files = self._gatherer.files
            missing = [f"worker {name} ({why})" for name, why in self._gatherer.missing.items()]
        elif self._run is not None:
            self._close()
            files = [self._run.file]
        plan, options = self._plan, environment.parsed_options
        self._plan = None
        marker(Path(plan.folder), plan.run).unlink(missing_ok=True)
        wait_s: float = options.audit_wait  # type: ignore[union-attr]
        report = verdict_of(
            plan.run, environment.host or "", self._sale, self._secret.admin_token, self._before, files, missing, wait_s
        )
        self.report = report
        if report.exit_code is not None:
            environment.process_exit_code = report.exit_code
        _log(report)

    def on_quitting(self, environment: Environment, **_: Any) -> None:
        """The verdict is in the files that locust wrote, and beside them."""
        if environment.runner is None or isinstance(environment.runner, WorkerRunner):
            return
        if self._plan is not None:  # ended by a signal: the run was not stopped yet
            environment.runner.stop()
        options: Any = environment.parsed_options
        if self.report is None:
            return
        try:
            if options.csv_prefix:
                write_json(Path(f"{options.csv_prefix}_audit.json"), self.report)
            page = Path(options.html_file) if options.html_file else None
            if page is not None and page.exists():
                page.write_text(with_section(page.read_text(encoding="utf-8"), self.report), encoding="utf-8")
        except OSError as exc:
            logger.error("the verdict could not be written: %s", exc)
            environment.process_exit_code = environment.process_exit_code or EXIT_UNJUDGED

    def _start_worker(self, runner: WorkerRunner, plan: Plan, secret: Secrets) -> None:
        sender = Sender(runner)
        sender.begin(plan.run)
        self._plan = plan
        folder = Path(plan.folder)
        self._shared = marker(folder, plan.run).exists()
        if not self._shared:
            folder = Path("locust-history").absolute()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._begin(plan, secret, runner.client_id.rpartition("_")[2][:8], folder)
        except OSError as exc:
            sender.failed(plan.run, str(exc))
            raise

    def _stop_worker(self, runner: WorkerRunner) -> None:
        plan, self._plan = self._plan, None
        if plan is None or self._run is None:
            return
        try:
            self._close()
            Sender(runner).file(plan.run, self._run.file, self._shared)
        except OSError as exc:
            Sender(runner).failed(plan.run, str(exc))

    def _begin(self, plan: Plan, secret: Secrets, process: str, folder: Path) -> None:
        self._run = locust_users.run = Run(plan, secret, process, folder)

    def _close(self) -> None:
        assert self._run is not None  # noqa: S101 - the callers have looked
        self._run.close()
        locust_users.run = None

    def _on_part(self, environment: Environment, msg: Any, **_: Any) -> None:
        if self._gatherer is not None:
            self._gatherer.take(msg.node_id, msg.data)

    def _on_finish(self, environment: Environment, msg: Any, **_: Any) -> None:
        """The master waits for the history: it asks before it says stop, or quit."""
        if environment.runner is not None and self._plan is not None and self._plan.run == msg.data["run"]:
            environment.runner.stop()

    def _into_web_report(self, response: Any) -> Any:
        from flask import request  # the web page's own; locust needs it, nobody else

        if request.path.endswith(REPORT_PATH) and self.report is not None and response.mimetype == "text/html":
            response.set_data(with_section(response.get_data(as_text=True), self.report))
        return response


def _log(report: AuditReport) -> None:
    for violation in report.violations:
        logger.error("invariant %d, %s: %s", violation.invariant, violation.what, violation.words)
    for line in report.why:
        logger.error("not judged: %s", line)
    for line in report.unjudged:
        logger.warning("not judged: %s", line)
    logger.info("audit of run %s: %s; %d orders accepted", report.run, report.verdict, report.orders)
