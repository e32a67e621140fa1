"""The client of the package websockets before the edge, behind which its server stands.

Arguments: address, port for https, port for http, host that is served, file with the CA's certificates.
"""

import asyncio
import json
import ssl
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

import checks

ADDRESS, TLS_PORT, PLAIN_PORT, HOST, CA_FILE = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
MEGABYTE = 1024 * 1024
AT_ONCE = 150
TLS = ssl.create_default_context(cafile=CA_FILE)


def open_it(path, tls=True, **options):
    url = f"wss://{HOST}:{TLS_PORT}{path}" if tls else f"ws://{HOST}:{PLAIN_PORT}{path}"
    options = {"ssl": TLS, **options} if tls else options
    port = TLS_PORT if tls else PLAIN_PORT
    return connect(url, host=ADDRESS, port=port, proxy=None, max_size=4 * MEGABYTE, **options)


async def text_and_bytes_with_and_without_tls():
    for tls in (True, False):
        async with open_it("/echo", tls) as ws:
            for message in ("text é", b"bytes \x00\xff", "", b""):
                await ws.send(message)
                assert await ws.recv() == message


async def the_origin_hears_who_asks_and_agrees_on_a_subprotocol():
    async with open_it("/about", subprotocols=["chat.v1", "chat.v2"]) as ws:
        about = json.loads(await ws.recv())
        assert ws.subprotocol == about["subprotocol"] == "chat.v2", about
        assert about["host"] == f"{HOST}:{TLS_PORT}" and about["forwarded"] == "https", about


async def compression_is_between_both_ends():
    for compression, expected in (("deflate", ["permessage-deflate"]), (None, [])):
        async with open_it("/about", compression=compression) as ws:
            about = json.loads(await ws.recv())
            assert [e.name for e in ws.protocol.extensions] == about["extensions"] == expected
            text = "the same words again and again, " * 10_000
            await ws.send(text)
            assert await ws.recv() == text


async def large_messages_whole_and_in_fragments():
    large = bytes(range(256)) * (MEGABYTE // 256)
    for compression in ("deflate", None):
        async with open_it("/echo", compression=compression) as ws:
            await ws.send(large)
            assert await ws.recv() == large
            await ws.send(large[at : at + 10_000] for at in range(0, MEGABYTE, 10_000))
            assert await ws.recv() == large


async def pings_are_answered_by_the_other_end():
    async with open_it("/echo") as ws:
        for payload in (b"", b"x" * 125):
            await (await ws.ping(payload))
        # Between the fragments of a message (RFC 6455 section 5.4).
        pongs = []

        async def fragments():
            yield "first "
            pongs.append(await ws.ping())
            await pongs[0]
            yield "last"

        await ws.send(fragments())
        assert await ws.recv() == "first last"


async def close_codes_reach_the_other_end():
    for code in (1000, 1001, 1008, 1011, 3000, 4999):
        async with open_it(f"/close/{code}") as ws:
            try:
                await ws.recv()
                raise AssertionError("it was not closed")
            except ConnectionClosed as closed:
                assert (closed.rcvd.code, closed.rcvd.reason) == (code, "the origin's reason é"), closed
        path = f"/closed-by-client/{code}"
        ws = await open_it(path)
        await ws.close(code, "the client's reason")
        assert await end_at_origin(path) == [code, "the client's reason"]


async def end_at_origin(path):
    while True:
        async with open_it("/ends") as ws:
            ends = json.loads(await ws.recv())
        if path in ends:
            return ends[path]
        await asyncio.sleep(0.02)


async def a_client_that_is_gone_is_gone_for_the_origin_too():
    ws = await open_it("/vanishing")
    await ws.send("here")
    assert await ws.recv() == "here"
    ws.transport.abort()
    code, _ = await end_at_origin("/vanishing")
    # RFC 6455 section 7.1.5: no close frame came.
    assert code == 1006, code


async def many_at_once():
    async def one(n):
        async with open_it(f"/echo?n={n}") as ws:
            for round in range(5):
                await ws.send(f"{n} {round}")
                assert await ws.recv() == f"{n} {round}"

    await asyncio.gather(*(one(n) for n in range(AT_ONCE)))


async def what_is_no_handshake_is_refused():
    try:
        async with open_it("/nowhere-else"):
            raise AssertionError("this route goes to no origin")
    except InvalidStatus as refused:
        assert refused.response.status_code == 404, refused.response


checks.run(
    [
        text_and_bytes_with_and_without_tls,
        the_origin_hears_who_asks_and_agrees_on_a_subprotocol,
        compression_is_between_both_ends,
        large_messages_whole_and_in_fragments,
        pings_are_answered_by_the_other_end,
        close_codes_reach_the_other_end,
        a_client_that_is_gone_is_gone_for_the_origin_too,
        many_at_once,
        what_is_no_handshake_is_refused,
    ]
)
