"""The world outside, as two containers of our own image: `exchange CSV`, and `inbox`.

Unlike `trading-pipelines replay` and `inbox` they listen on the containers' network, not on loopback.
"""

import json
import sys
import time
from datetime import timedelta
from pathlib import Path

from trading_pipelines.simulators.discord import DiscordInbox
from trading_pipelines.simulators.upbit.market import Recording
from trading_pipelines.simulators.upbit.server import ReplayExchange

if sys.argv[1] == "exchange":
    market = Recording.load(Path(sys.argv[2]))
    with ReplayExchange(market, clock=timedelta(), host="0.0.0.0", port=8900):  # noqa: S104
        print("listening", flush=True)
        time.sleep(10**7)
else:
    with DiscordInbox(host="0.0.0.0", port=8901) as inbox:  # noqa: S104
        print("listening", flush=True)
        shown = 0
        while True:
            for message in inbox.messages[shown:]:
                print(json.dumps(message.payload), flush=True)
                shown += 1
            time.sleep(0.1)
