"""A flash sale for locust: `locust -f loadtest/locustfile.py --host URL --campaign NAME`. The guide: docs/loadtest.md.

Secrets come from the environment: RUSHGATE_CHANNEL_KEY; RUSHGATE_ADMIN_TOKEN for the server's audit;
RUSHGATE_PAYMENT_SECRETS for buyers who pay.
"""

import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any, cast

from locust import LoadTestShape, events

# Its helpers are those beside it, wherever it is started from and whatever else is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loadtest import locust_options
from loadtest.locust_events import Conductor
from loadtest.locust_shapes import step_at
from loadtest.locust_users import Bot, Buyer, Channel

__all__ = ["Bot", "Buyer", "Channel", "Shape"]

conductor, hooks = Conductor(), cast(Any, events)  # locust's hooks have no types
hooks.init.add_listener(conductor.on_init)
hooks.test_start.add_listener(conductor.on_start)
hooks.test_stop.add_listener(conductor.on_stop)
hooks.quitting.add_listener(conductor.on_quitting)


def add_arguments(parser: ArgumentParser, **_: Any) -> None:
    """Our flags beside locust's."""
    locust_options.add_arguments(parser)


hooks.init_command_line_parser.add_listener(add_arguments)


class Shape(LoadTestShape):
    """The one that `--shape` names. locust takes the first shape of a file, so there is one, which can be all."""

    use_common_options = True

    def tick(self) -> tuple[int, float] | None:
        """Users and spawn rate from now on; None: the run is over."""
        assert self.runner is not None  # noqa: S101 - locust sets it before the first tick
        options: Any = self.runner.environment.parsed_options
        processes = getattr(self.runner, "worker_count", 1)
        elapsed_s = cast(Any, self).get_run_time()
        return step_at(
            options.shape, elapsed_s, options.run_time, options.num_users or 1, options.spawn_rate or 1,
            processes,
        )  # fmt: skip
