"""Runs a script's checks one after another and prints the name of each that held."""

import asyncio
import sys
import traceback

# Only a failure reaches it.
DEADLINE_SECONDS = 60


def run(checks):
    """Awaits each check; prints `ok NAME`, or the traceback and ends with status 1 when all have run."""

    async def all_of_them():
        failed = False
        for check in checks:
            try:
                await asyncio.wait_for(check(), DEADLINE_SECONDS)
            except Exception:
                failed = True
                print(f"FAILED {check.__name__}", file=sys.stderr)
                traceback.print_exc()
            else:
                print(f"ok {check.__name__}", flush=True)
        return failed

    sys.exit(1 if asyncio.run(all_of_them()) else 0)


async def until(what, condition):
    """Polls until `condition` is true."""
    for _ in range(DEADLINE_SECONDS * 50):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"waited in vain for: {what}")
