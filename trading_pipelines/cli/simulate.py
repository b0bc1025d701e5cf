"""`replay | inbox`: stand-ins for Upbit and Discord on loopback, until Ctrl-C."""

import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from trading_pipelines.candles.windows import MINUTE
from trading_pipelines.cli.options import HIGHEST_PORT
from trading_pipelines.cli.render import out
from trading_pipelines.cli.sessions import await_interrupt, settings_or_defaults
from trading_pipelines.settings.environment import load_environment

app = typer.Typer()


@app.command()
def replay(
    recording: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Parquet or CSV of candles.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the generated market.")] = 7,
    port: Annotated[
        int, typer.Option(help="Port, on 127.0.0.1; 0 takes a free one.", min=0, max=HIGHEST_PORT)
    ] = 8900,
    rate: Annotated[
        float, typer.Option(help="Requests a second; 0 lifts the limit.", min=0)
    ] = 10.0,
    latency: Annotated[float, typer.Option(help="Seconds before an answer leaves.", min=0)] = 0.05,
    clock: Annotated[
        datetime | None,
        typer.Option(help="The exchange's time at its start (UTC); the end of a recording."),
    ] = None,
    shift: Annotated[
        float | None, typer.Option(help="Its clock is this many seconds ahead.")
    ] = None,
    speed: Annotated[
        float, typer.Option(help="Seconds of its clock in one of ours.", min=0.01, max=1000)
    ] = 1.0,
    fault: Annotated[
        list[str] | None,
        typer.Option(help="A fault to inject, such as truncated_json:every=7,count=3."),
    ] = None,
) -> None:
    """Serve Upbit's candle API over a recording or a generated market, on loopback.

    `UPBIT_BASE_URL=http://127.0.0.1:8900 trading-pipelines up`, started beside it, asks it in
    Upbit's place. The generated market has the symbols of the settings file, or the default ones
    where there is no such file. It serves the history files too, at the same address: the
    listing, zips by day and month, and their checksums; faults that begin with `file_` or
    `listing_` are of those. No rate limits them. Upbit's candle stream (`candle.1m`) is at
    `ws://127.0.0.1:8900/websocket/v1`; its faults begin with `stream_`.

    Example: trading-pipelines replay --fault 429_text:every=50
    """
    from trading_pipelines.simulators.upbit import Fault, GeneratedMarket, Recording, ReplayExchange

    try:
        faults = [Fault.parse(text) for text in fault or []]
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    market = (
        Recording.load(recording)
        if recording
        else GeneratedMarket(settings_or_defaults(load_environment()).symbols, seed)
    )
    at: datetime | timedelta | None = timedelta(seconds=shift) if shift is not None else None
    if clock is not None:
        at = clock.replace(tzinfo=UTC)
    elif at is None and isinstance(market, Recording):
        at = market.end + MINUTE
    with ReplayExchange(
        market,
        rate=rate or None,
        latency=latency,
        clock=at,
        speed=speed,
        faults=faults,
        port=port,
    ) as exchange:
        out.print(f"{market.label} at {exchange.url}; UPBIT_BASE_URL={exchange.url}")
        await_interrupt()


@app.command()
def inbox(
    port: Annotated[
        int, typer.Option(help="Port, on 127.0.0.1; 0 takes a free one.", min=0, max=HIGHEST_PORT)
    ] = 8901,
) -> None:
    """Stand in for Discord on loopback, and print what arrives as Discord would show it.

    It prints the DISCORD_WEBHOOK_URL with which `trading-pipelines up` posts to it.

    Example: trading-pipelines inbox --port 8902
    """
    from trading_pipelines.simulators.discord import DiscordInbox, show_message

    with DiscordInbox(limited=True, port=port) as discord:
        out.print(f"DISCORD_WEBHOOK_URL={discord.url}")

        def print_messages() -> None:
            printed = 0
            while True:
                for message in discord.messages[printed:]:
                    out.print(show_message(message.payload))
                    printed += 1
                time.sleep(0.2)

        threading.Thread(target=print_messages, daemon=True).start()
        await_interrupt()
